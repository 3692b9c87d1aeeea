"""Text generation with a trained PaLM: cached decoding, sampling and streaming."""

from mindspore_palm.generate.generator import Generation, Generator
from mindspore_palm.generate.sampling import Sampling

__all__ = ["Generation", "Generator", "Sampling"]

"""A trained PaLM writes: cached decoding, sampling, and text as it comes."""

from mindspore_palm.generate.generator import Generation, Generator
from mindspore_palm.generate.sampling import Sampling

__all__ = ["Generation", "Generator", "Sampling"]

"""Text generation with a trained PaLM: cached decoding, sampling and streaming. Names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mindspore_palm.generate.generator import Generator
    from mindspore_palm.generate.sampling import Sampling
    from mindspore_palm.generate.sequence import Generation

__all__ = ["Generation", "Generator", "Sampling"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = {"Generation": "sequence", "Generator": "generator", "Sampling": "sampling"}[name]
    return getattr(import_module(f"{__name__}.{home}"), name)

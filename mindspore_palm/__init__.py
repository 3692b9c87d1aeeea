"""PaLM in MindSpore. Names are imported on first use, so that settings can be read without starting MindSpore."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mindspore_palm import cuda

os.environ.setdefault("GLOG_v", "3")  # MindSpore logs only errors; it reads this once, when it is imported
cuda.prepare_with_mindspore()

if TYPE_CHECKING:
    from mindspore_palm.checkpoint.model_folder import load
    from mindspore_palm.config import PaLMConfig
    from mindspore_palm.data.tokenizer import Tokenizer
    from mindspore_palm.generate.generator import Generator
    from mindspore_palm.generate.sampling import Sampling
    from mindspore_palm.generate.sequence import Generation
    from mindspore_palm.model.palm import PaLM
    from mindspore_palm.zoo import create_model, is_model, is_model_pretrained, list_models, model_entrypoint

__all__ = [
    "Generation",
    "Generator",
    "PaLM",
    "PaLMConfig",
    "Sampling",
    "Tokenizer",
    "create_model",
    "is_model",
    "is_model_pretrained",
    "list_models",
    "load",
    "model_entrypoint",
]

_HOMES = {
    "Generation": "mindspore_palm.generate.sequence",
    "Generator": "mindspore_palm.generate.generator",
    "PaLM": "mindspore_palm.model.palm",
    "PaLMConfig": "mindspore_palm.config",
    "Sampling": "mindspore_palm.generate.sampling",
    "Tokenizer": "mindspore_palm.data.tokenizer",
    "create_model": "mindspore_palm.zoo",
    "is_model": "mindspore_palm.zoo",
    "is_model_pretrained": "mindspore_palm.zoo",
    "list_models": "mindspore_palm.zoo",
    "load": "mindspore_palm.checkpoint.model_folder",
    "model_entrypoint": "mindspore_palm.zoo",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

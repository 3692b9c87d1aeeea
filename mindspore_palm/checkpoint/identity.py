"""Names of models by their content: the same wherever they are, however they are sharded, whatever they are called."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from mindspore_palm.checkpoint.format import BLOCK, CONFIG, Checkpoint
from mindspore_palm.checkpoint.merged import model_weights
from mindspore_palm.checkpoint.safetensors_stream import file_tensors
from mindspore_palm.config import PaLMConfig
from mindspore_palm.errors import UserError
from mindspore_palm.model.weights import weight_shapes
from mindspore_palm.parallel.placement import Window
from mindspore_palm.settings import load_settings

WEIGHTS = "model.safetensors"
MODEL_OF = "checkpoint"  # in the header of a model: the identity of the checkpoint that it was exported from


Reader = Callable[[Window], np.ndarray]
"""Reads a window of a weight."""


def weights_identity(weights: Mapping[str, np.ndarray | Reader], config: PaLMConfig) -> str:
    """Names the content of all weights of a network, in hexadecimal digits.

    Args:
        weights: by name; no more than a block of rows of one is in memory at a time.
        config: of the network.
    """
    digest = hashlib.sha256()
    for name, shape in sorted(weight_shapes(config).items()):
        digest.update(f"{name} {list(shape)}\n".encode())
        for block in _blocks(weights[name], shape):
            digest.update(memoryview(np.ascontiguousarray(block, np.float32).reshape(-1)).cast("B"))
    return digest.hexdigest()


def header_of(file: Path) -> dict[str, str]:
    """What stands in the header of a model beside its tensors; nothing where it cannot be read."""
    try:
        with safe_open(file, framework="numpy") as content:
            return dict(content.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def is_model_of(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether a folder holds the model that is exported from a checkpoint: by its header, or else by its weights."""
    file = folder / WEIGHTS
    about = header_of(file)
    if MODEL_OF in about:
        return about[MODEL_OF] == checkpoint.identity
    if about.get("step") != str(checkpoint.step):
        return False
    try:  # an earlier version wrote it
        config = load_settings(checkpoint.folder / CONFIG)[0].model
        ours, theirs = file_tensors(file), model_weights(checkpoint, config)
        return all(
            name in ours
            and ours[name].shape == shape
            and all(map(np.array_equal, _blocks(ours[name].read, shape), _blocks(theirs[name].read, shape)))
            for name, shape in weight_shapes(config).items()
        )
    except UserError:
        return False


def _blocks(weight: np.ndarray | Reader, shape: tuple[int, ...]) -> Iterable[np.ndarray]:
    if isinstance(weight, np.ndarray):
        return (weight,)
    rows = max(1, BLOCK // max(1, 4 * prod(shape[1:])))
    rest = tuple(slice(0, size) for size in shape[1:])
    return (weight((slice(at, min(at + rows, shape[0])), *rest)) for at in range(0, shape[0], rows))

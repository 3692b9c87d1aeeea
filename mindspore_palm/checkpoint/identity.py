"""Identities of models: hashes of their content, independent of location, sharding and file names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from mindspore_palm.checkpoint.format import BLOCK_BYTES, Checkpoint
from mindspore_palm.checkpoint.merged import model_weights
from mindspore_palm.checkpoint.safetensors_stream import file_tensors, row_windows
from mindspore_palm.config import PaLMConfig
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import CONFIG, WEIGHTS
from mindspore_palm.model.weights import weight_shapes
from mindspore_palm.parallel.placement import Window
from mindspore_palm.settings import load_settings

SOURCE_CHECKPOINT = "checkpoint"  # metadata key of a model: the identity of the checkpoint it was exported from

Reader = Callable[[Window], np.ndarray]
"""Reads a window of a weight."""


def weights_identity(weights: Mapping[str, np.ndarray | Reader], config: PaLMConfig) -> str:
    """Hash of all weights of a network, hexadecimal.

    Args:
        weights: by name; at most one block of rows is in memory at a time.
        config: of the network.
    """
    digest = hashlib.sha256()
    for name, shape in sorted(weight_shapes(config).items()):
        digest.update(f"{name} {list(shape)}\n".encode())
        for block in _blocks(weights[name], shape):
            digest.update(np.ascontiguousarray(block, np.float32).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def header_of(file: Path) -> dict[str, str]:
    """Metadata in the header of a model's file; empty if it cannot be read."""
    try:
        with safe_open(file, framework="numpy") as content:
            return dict(content.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def is_model_of(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether a folder holds the model exported from a checkpoint, by its metadata or, without it, by its weights."""
    file = folder / WEIGHTS
    about = header_of(file)
    if SOURCE_CHECKPOINT in about:
        return about[SOURCE_CHECKPOINT] == checkpoint.identity
    if about.get("step") != str(checkpoint.step):
        return False
    try:  # written by an earlier version
        config = load_settings(checkpoint.folder / CONFIG)[0].model
        exported, trained = file_tensors(file), model_weights(checkpoint, config)
        return all(
            name in exported
            and exported[name].shape == shape
            and all(map(np.array_equal, _blocks(exported[name].read, shape), _blocks(trained[name].read, shape)))
            for name, shape in weight_shapes(config).items()
        )
    except UserError:
        return False


def _blocks(weight: np.ndarray | Reader, shape: tuple[int, ...]) -> Iterable[np.ndarray]:
    if isinstance(weight, np.ndarray):
        return (weight,)
    return map(weight, row_windows(shape, np.dtype(np.float32).itemsize, BLOCK_BYTES))

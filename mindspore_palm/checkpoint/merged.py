"""The weights of the network in a checkpoint; kernels with a LoRA adapter are merged as they are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mindspore_palm.checkpoint.format import Checkpoint, StoredTensor
from mindspore_palm.config import PaLMConfig
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import CONFIG
from mindspore_palm.model.lora import A, B, merged
from mindspore_palm.model.weights import weight_axes
from mindspore_palm.parallel.placement import Window
from mindspore_palm.settings import load_settings


def model_weights(checkpoint: Checkpoint, config: PaLMConfig) -> dict[str, StoredTensor | Merged]:
    """The weights of the network in a checkpoint by name; kernels with a LoRA adapter are merged.

    Raises:
        UserError: one is missing: the checkpoint is of another configuration.
    """
    weights: dict[str, StoredTensor | Merged] = {}
    for name in weight_axes(config):
        if name not in checkpoint.tensors:
            raise UserError(f"the weights lack {name}; they are of another configuration")
        weights[name] = checkpoint.tensors[name]
        if f"{name}.{A}" in checkpoint.tensors:
            finetune = load_settings(checkpoint.folder / CONFIG)[0].finetune
            a, b = (checkpoint.tensors[f"{name}.{part}"] for part in (A, B))
            weights[name] = Merged(checkpoint.tensors[name], a, b, finetune.lora_scale)
    return weights


@dataclass(frozen=True)
class Merged:
    """A kernel of a checkpoint plus its low-rank update A B, computed as it is read."""

    kernel: StoredTensor
    a: StoredTensor
    b: StoredTensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the full kernel."""
        return self.kernel.shape

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the kernel."""
        return self.kernel.dtype

    def read(self, window: Window | None = None) -> np.ndarray:
        """A window of the kernel, or all of it."""
        rows, columns = window or (slice(0, self.shape[0]), slice(0, self.shape[1]))
        rank = slice(0, self.b.shape[0])
        parts = self.kernel.read((rows, columns)), self.a.read((rows, rank)), self.b.read((rank, columns))
        return merged(*parts, self.scale)

    def blocks(self) -> Iterator[np.ndarray]:
        """Blocks of rows, in order."""
        start = 0
        for block in self.kernel.blocks():
            rows = slice(start, start + len(block))
            start = rows.stop
            yield merged(block, self.a.read((rows, slice(0, self.b.shape[0]))), self.b.read(), self.scale)

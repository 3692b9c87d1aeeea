"""Dropout for fine-tuning: what is kept is part of the batch, a function of (seed, step, sequence).

As in T5X, all positions of a sequence keep the same features. So what is kept is small enough to be drawn beside the
batch, where no compiler, device or mesh changes it, and a run that goes on draws the same again.
"""

from __future__ import annotations

import hashlib

import numpy as np
from mindspore import Tensor, nn, ops

from mindspore_palm.model.precision import ToCompute
from mindspore_palm.parallel.axes import shard


class Dropout(nn.Cell):
    """``x * keep`` with one ``keep`` for all positions of a sequence: [T, D] and [B, 1, D] to [T, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.times = shard(ops.Mul(), ("batch", "length", "embed"), ("batch", "one", "embed"))
        self.reshape = ops.Reshape()

    def construct(self, x: Tensor, keep: Tensor) -> Tensor:
        batch, _, d_model = keep.shape
        return self.reshape(self.times(self.reshape(x, (batch, -1, d_model)), keep), (-1, d_model))


class Layers(nn.Cell):
    """What is kept, by layer: [B, layers, D] to as many [B, 1, D], in the compute type."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.split = shard(ops.Split(1, layers), ("batch", "one", "embed"))
        self.to_compute = ToCompute(("batch", "one", "embed"))

    def construct(self, keep: Tensor) -> tuple[Tensor, ...]:
        return self.split(self.to_compute(keep))


def draw_keep(seed: int, step: int, rows: range, layers: int, d_model: int, rate: float) -> np.ndarray:
    """What dropout leaves of some sequences of a batch: float32 [rows, layers, D], zero or 1/(1 - rate).

    Args:
        seed: of the run.
        step: whose batch it is.
        rows: which sequences of it; each is drawn by itself, so that any worker can draw its own.
        layers: places where features are dropped.
        d_model: features.
        rate: the share of features that is dropped.
    """
    keep = np.empty((len(rows), layers, d_model), np.float32)
    for place, row in enumerate(rows):
        key = hashlib.blake2b(f"{seed}:dropout:{step}:{row}".encode(), digest_size=16).digest()
        words = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(layers * d_model)
        kept = (words >> np.uint64(11)) * 2.0**-53 >= rate
        keep[place] = np.where(kept, 1.0 / (1.0 - rate), 0.0).reshape(layers, d_model)
    return keep

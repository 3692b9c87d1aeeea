"""Dropout for fine-tuning. The mask is part of the batch: a function of (seed, step, sequence).

As in T5X, all positions of a sequence drop the same features. So the mask is small enough to be drawn on the host, with
the batch: no compiler, device or mesh changes it, and a resumed run draws the same one.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops

from mindspore_palm.model.precision import ToCompute
from mindspore_palm.parallel.axes import shard
from mindspore_palm.random import philox


class Dropout(nn.Cell):
    """``x * mask``, the same mask for all positions of a sequence: [T, D] and [B, 1, D], or None, to [T, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.times = shard(ops.Mul(), ("batch", "length", "embed"), ("batch", "one", "embed"))
        self.reshape = ops.Reshape()

    def construct(self, x_TD: Tensor, mask_B1D: Tensor | None) -> Tensor:
        if mask_B1D is None:
            return x_TD
        batch, _, d_model = mask_B1D.shape
        x_BSD = self.reshape(x_TD, (batch, -1, d_model))
        return self.reshape(self.times(x_BSD, mask_B1D), (-1, d_model))


class SplitMask(nn.Cell):
    """Splits the mask by site: [B, sites, D] to ``sites`` times [B, 1, D] in the compute dtype; None to None each.

    A site is where features are dropped: after the embedding, and after each block.
    """

    def __init__(self, sites: int) -> None:
        super().__init__()
        self.sites = sites
        self.split = shard(ops.Split(1, sites), ("batch", "one", "embed"))
        self.to_compute = ToCompute(("batch", "one", "embed"))

    def construct(self, mask: Tensor | None) -> tuple[Tensor | None, ...]:
        if mask is None:
            return (None,) * self.sites
        return self.split(self.to_compute(mask))


def draw_dropout_mask(seed: int, step: int, rows: range, sites: int, d_model: int, rate: float) -> np.ndarray:
    """Dropout mask of some sequences of a batch: float32 [rows, sites, D], zero or 1/(1 - rate).

    Args:
        seed: of the run.
        step: number of the batch.
        rows: sequences of the batch. Each is drawn independently, so any worker can draw its own.
        sites: number of sites, see ``SplitMask``.
        d_model: D, features per site.
        rate: share of the features that is dropped.
    """
    mask = np.empty((len(rows), sites, d_model), np.float32)
    for i, row in enumerate(rows):
        words = philox(f"{seed}:dropout:{step}:{row}").random_raw(sites * d_model)
        retained = (words >> np.uint64(11)) * 2.0**-53 >= rate
        mask[i] = np.where(retained, 1.0 / (1.0 - rate), 0.0).reshape(sites, d_model)
    return mask

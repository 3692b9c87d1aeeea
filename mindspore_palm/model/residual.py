"""The residual stream between blocks."""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from mindspore_palm.parallel.axes import shard
from mindspore_palm.parallel.recompute import residual_width


class Residual(nn.Cell):
    """The residual stream: rows of ``residual_width`` columns. That is D, except if blocks are recomputed on a mesh."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model, self.width = d_model, residual_width(d_model)
        self.sum = shard(ops.Add(), ("tokens", "embed"), ("tokens", "embed"))
        self.reshape, self.depend = ops.Reshape(), ops.Depend()

    def read(self, x: Tensor) -> Tensor:
        """The stream as [T, D]."""
        return self.reshape(x, (-1, self.d_model))

    def write(self, x_TD: Tensor) -> Tensor:
        """A new stream from [T, D]."""
        return self.reshape(x_TD, (-1, self.width))

    def add(self, x: Tensor, out_TD: Tensor, after: Tensor) -> Tensor:
        """The stream plus a block's output. ``after``, the block's norm of the stream, is computed first.

        MS-06: ``recompute_slice_activation`` decides from x's first consumer which activation to save in slices. If
        that were this add, MindSpore would slice only every other block. Depend makes the norm the first consumer.
        """
        return self.sum(self.depend(x, after), self.write(out_TD))

"""Positions that are not rotations: linear biases of the scores (ALiBi), and a trained row for each position."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops import constexpr

from mindspore_palm.parallel.axes import shard
from mindspore_palm.parallel.cells import make_lookup


def alibi_slopes(heads: int) -> np.ndarray:
    """Slope of each head, 2^(-8i/H) for i = 1 .. H (arXiv 2108.12409, section 3): float32 [H].

    The paper's code takes other slopes if H is no power of two; its text does not, and neither does this.
    """
    return (2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)).astype(np.float32)


def alibi_bias(distance: np.ndarray, heads: int, head_axis: int) -> np.ndarray:
    """``-slope * distance``: float32, with an axis of the H heads at ``head_axis``.

    Args:
        distance: of query and key, in tokens; any shape. Negative ones, of keys that are masked, give anything.
        heads: H.
        head_axis: where the result has the heads.
    """
    bias = -np.multiply.outer(alibi_slopes(heads), distance.astype(np.float32))
    return np.moveaxis(bias, 0, head_axis)


@constexpr
def check_length(length: int, rows: int) -> None:
    """Raises ValueError if a sequence is longer than the table of its positions."""
    if length > rows:
        raise ValueError(f"a sequence of {length} tokens, and the network has learned {rows} positions")


class LearnedPositions(nn.Cell):
    """Adds to each token the row of its position, of a trained table [rows, D].

    Args:
        table: the Parameter.
    """

    def __init__(self, table: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.table, self.lookup = table, make_lookup()
        self.first_rows = shard(ops.StridedSlice(), ("one", "embed"))
        self.add = shard(ops.Add(), ("tokens", "embed"), ("one", "embed"))
        self.add_rows = shard(ops.Add(), ("tokens", "embed"), ("tokens", "embed"))
        self.reshape = ops.Reshape()

    def construct(self, x_TD: Tensor, sequences: int, position_ids: Tensor | None = None) -> Tensor:
        """[T, D] to [T, D]: of full sequences, or at positions int32 [B, S] of tokens that continue a cache."""
        tokens, d_model = x_TD.shape
        if position_ids is not None:
            return self.add_rows(x_TD, self.lookup(self.table, self.reshape(position_ids, (-1,))))
        length = tokens // sequences
        check_length(length, self.table.shape[0])
        rows = self.reshape(self.first_rows(self.table, (0, 0), (length, d_model), (1, 1)), (1, -1))
        return self.reshape(self.add(self.reshape(x_TD, (sequences, -1)), rows), (tokens, d_model))

"""Rotary position embeddings (RoFormer, arXiv 2104.09864), as PaLM uses them."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.precision import ToCompute, ToFloat32
from mindspore_palm.parallel.axes import shard

BASE = 10000.0


def tables(length: int, head_dim: int, scale: float = 1.0, xpos_base: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of ``position * 10000^(-2i/K)``, times scale: float32 [S, K/2] each.

    With xPos (arXiv 2212.10554) they are also multiplied by ``((2i + 0.4K) / 1.4K)^(position / xpos_base)``. Keys take
    the negative base, so that q k^T depends on the distance of query and key only.
    """
    feature, position = np.arange(0, head_dim, 2), np.arange(length)
    angle = np.outer(position, BASE ** (-feature / head_dim))
    factor: float | np.ndarray = scale
    if xpos_base:
        factor = scale * ((feature + 0.4 * head_dim) / (1.4 * head_dim)) ** (position / xpos_base)[:, None]
    return (factor * np.cos(angle)).astype(np.float32), (factor * np.sin(angle)).astype(np.float32)


@constexpr
def rotation(length: int, head_dim: int, scale: float, xpos_base: float) -> tuple[Tensor, Tensor]:
    """The tables of positions 0 .. S - 1 as constants of the graph: [1, S, 1, K/2] each."""
    cos, sin = tables(length, head_dim, scale, xpos_base)
    return Tensor(cos[None, :, None]), Tensor(sin[None, :, None])


class Rope(nn.Cell):
    """Rotates each pair (x1[i], x2[i]) of a head's two halves by its position: [B, S, H, K] to the same shape.

    Args:
        heads_axis: logical axis of H: "heads" for queries, "kv" for the single head of keys.
        scale: factor of the result. It is multiplied into the tables, where it costs nothing.
        xpos_base: as for ``tables``.
    """

    def __init__(self, heads_axis: str, scale: float = 1.0, xpos_base: float = 0.0) -> None:
        super().__init__()
        self.scale, self.xpos_base = scale, xpos_base
        x, table = ("batch", "length", heads_axis, "per_head"), ("one", "length", "one", "per_head")
        self.halves = shard(ops.Split(-1, 2), x)
        self.times = shard(ops.Mul(), x, table)
        self.minus, self.plus = shard(ops.Sub(), x, x), shard(ops.Add(), x, x)
        self.join = shard(ops.Concat(-1), x, x)
        self.to_float32, self.to_compute = ToFloat32(x), ToCompute(x)

    def construct(self, x_BSHK: Tensor) -> Tensor:
        cos, sin = rotation(x_BSHK.shape[1], x_BSHK.shape[3], self.scale, self.xpos_base)
        return self.rotate(x_BSHK, cos, sin)

    def rotate(self, x_BSHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotates by given tables [1 or B, S, 1, K/2], which include the scale."""
        x1, x2 = self.halves(self.to_float32(x_BSHK))
        rotated_BSHK = self.join(
            (
                self.minus(self.times(x1, cos), self.times(x2, sin)),
                self.plus(self.times(x2, cos), self.times(x1, sin)),
            )
        )
        return self.to_compute(rotated_BSHK)


class Unrotated(nn.Cell):
    """``scale * x`` in place of the rotation, for networks that know positions in another way: [B, S, H, K].

    Arguments and methods are those of ``Rope``.
    """

    def __init__(self, heads_axis: str, scale: float = 1.0) -> None:
        super().__init__()
        x = ("batch", "length", heads_axis, "per_head")
        self.scale, self.times = scale, shard(ops.Mul(), x, ())
        self.to_float32, self.to_compute = ToFloat32(x), ToCompute(x)

    def construct(self, x_BSHK: Tensor) -> Tensor:
        if self.scale == 1.0:
            return x_BSHK
        return self.to_compute(self.times(self.to_float32(x_BSHK), self.scale))

    def rotate(self, x_BSHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The same; there is nothing to rotate."""
        return self.construct(x_BSHK)


def make_rotation(config: PaLMConfig, heads_axis: str, scale: float = 1.0, inverse: bool = False) -> Rope | Unrotated:
    """The Cell that queries or keys go through before their matmul.

    Args:
        config: of the network.
        heads_axis: as for ``Rope``.
        scale: as for ``Rope``.
        inverse: whether xPos decays the other way, as for keys.
    """
    if config.position != "rope":
        return Unrotated(heads_axis, scale)
    return Rope(heads_axis, scale, -config.xpos_base if inverse else config.xpos_base)

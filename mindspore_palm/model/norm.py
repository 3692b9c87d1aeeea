"""Root mean square norm (the code of PaLM; its paper says layer norm)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mindspore import Tensor, nn, ops

from mindspore_palm.model.precision import ToFloat32
from mindspore_palm.parallel.axes import current_layout, shard
from mindspore_palm.parallel.placement import Window
from mindspore_palm.parallel.weights import make_weight

EPSILON = 1e-6


class RMSNorm(nn.Cell):
    """``x / sqrt(mean(x^2) + 1e-6) * (1 + scale)`` over the last axis of [T, D], to float32; scale starts at zero.

    Args:
        d_model: D.
        learned_scale: False leaves the scale out, as before PaLM's logits.
    """

    def __init__(self, d_model: int, learned_scale: bool = True) -> None:
        super().__init__()
        rows, column = ("tokens", "embed"), ("tokens", "one")
        self.learned_scale, self.one_by_d = learned_scale, 1.0 / d_model
        self.to_float32 = ToFloat32(rows)
        if learned_scale:
            self.scale = make_weight("scale", (d_model,), ("embed",), _zeros(d_model), fully_sharded=False)
        # On one device x*x: the gradient of Square is slow on CPU. On several, the gradient of x*x is x*g + x*g, and
        # where x comes from an all-reduce (the embedding's), MindSpore 2.10 takes the sum for a weight decay and
        # rewrites it to something else (AdjustAllReduceMulAdd): a silently wrong gradient, which a parity test found.
        self.several = current_layout().devices > 1
        self.square = shard(ops.Square(), rows) if self.several else shard(ops.Mul(), rows, rows)
        self.sum = shard(ops.ReduceSum(keep_dims=True), rows)
        self.mean = shard(
            ops.Mul(), column, ()
        )  # a sum times 1/D: the gradient of ReduceMean divides D numbers, not one
        self.add_epsilon = shard(ops.Add(), column, ())
        self.rsqrt = shard(ops.Rsqrt(), column)
        self.normalise = shard(ops.Mul(), rows, column)
        self.one_plus = shard(ops.Add(), ("embed",), ())
        self.stretch = shard(ops.Mul(), rows, ("embed",))

    def construct(self, x: Tensor) -> Tensor:
        x = self.to_float32(x)
        square = self.square(x) if self.several else self.square(x, x)
        mean_square = self.mean(self.sum(square, -1), self.one_by_d)
        y = self.normalise(x, self.rsqrt(self.add_epsilon(mean_square, EPSILON)))
        if self.learned_scale:
            y = self.stretch(y, self.one_plus(self.scale, 1.0))
        return y


def _zeros(size: int) -> Callable[[Window | None], np.ndarray]:
    return lambda window: np.zeros(size if window is None else window[0].stop - window[0].start, np.float32)

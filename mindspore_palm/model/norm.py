"""Root mean square norm (the code of PaLM; its paper says layer norm)."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindspore_palm.parallel.axes import shard

EPSILON = 1e-6


class RMSNorm(nn.Cell):
    """``x / sqrt(mean(x^2) + 1e-6) * (1 + scale)`` over the last axis of float32 [T, D]; scale starts at zero.

    Args:
        d_model: D.
        learned_scale: False leaves the scale out, as before PaLM's logits.
    """

    def __init__(self, d_model: int, learned_scale: bool = True) -> None:
        super().__init__()
        rows, column = ("tokens", "embed"), ("tokens", "one")
        self.learned_scale, self.one_by_d = learned_scale, 1.0 / d_model
        if learned_scale:
            self.scale = Parameter(Tensor(np.zeros(d_model, np.float32)), name="scale", parallel_optimizer=False)
        self.square = shard(ops.Mul(), rows, rows)
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
        mean_square = self.mean(self.sum(self.square(x, x), -1), self.one_by_d)
        y = self.normalise(x, self.rsqrt(self.add_epsilon(mean_square, EPSILON)))
        if self.learned_scale:
            y = self.stretch(y, self.one_plus(self.scale, 1.0))
        return y

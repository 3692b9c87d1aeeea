"""Adafactor as PaLM used it (section 5 of the paper, order of operations of T5X).

Without factoring it saves no memory: v and m are as large as the weights. The factored variant does (one row and one
column instead of v) and is a setting.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindspore_palm.config import OptimizerConfig
from mindspore_palm.optim.norm import RowSquares
from mindspore_palm.optim.schedule import Schedule
from mindspore_palm.parallel.sums import SumOverSlices
from mindspore_palm.parallel.weights import zeros_like

MOMENTUM = 0.9
DECAY_EXPONENT = -0.8
TINY = 1e-30  # keeps the root of v from zero
SMALLEST_SCALE = 1e-3


class Adafactor(nn.Optimizer):
    """For k = 1, 2, ... and every weight p with gradient g::

        s = max(1e-3, rms(p))
        b = 1 - k^-0.8
        v = b*v + (1-b)*(g*g + 1e-30)
        u = g / sqrt(v);   u /= max(1, rms(u) / update_clip)
        m = 0.9*m + 0.1*(lr*s*u)
        p = (1 - lr^2)*p - m

    Factored, v of a matrix is ``row * column / mean(row)``, of the means of g*g over columns and over rows.

    Args:
        parameters: the weights.
        config: ``factored``, ``update_clip`` and ``lr_squared_decay`` are read here.
        schedule: the learning rate of step k.

    ``construct(gradients)`` changes the weights and returns the learning rate it used, float32 [].
    """

    def __init__(self, parameters: list[Parameter], config: OptimizerConfig, schedule: Schedule) -> None:
        super().__init__(0.0, parameters)
        self.schedule = schedule
        self.update_clip, self.lr_squared_decay = config.update_clip, config.lr_squared_decay
        self.m = zeros_like(self.parameters, "m")
        self.factored = tuple(config.factored and p.ndim == 2 for p in self.parameters)
        self.sizes, self.over_slices = tuple(p.size for p in self.parameters), SumOverSlices(self.parameters)
        # a factored v is its row and column; a full one is itself, and its column an unused scalar
        self.v = ParameterTuple(
            _zeros(f"v.{p.name}", p.shape[:1]) if f else zeros_like([p], "v")[0]
            for p, f in zip(self.parameters, self.factored, strict=True)
        )
        self.v_column = ParameterTuple(
            _zeros(f"v_column.{p.name}", p.shape[1:] if f else ())
            for p, f in zip(self.parameters, self.factored, strict=True)
        )
        self.row_squares, self.sum = RowSquares(), ops.ReduceSum()
        self.mul, self.add, self.sub = ops.Mul(), ops.Add(), ops.Sub()
        self.square, self.sqrt, self.rsqrt, self.pow = ops.Square(), ops.Sqrt(), ops.Rsqrt(), ops.Pow()
        self.mean, self.maximum, self.cast, self.assign = ops.ReduceMean(), ops.Maximum(), ops.Cast(), ops.Assign()
        self.reshape, self.depend = ops.Reshape(), ops.Depend()

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        # the count that was raised, not one that is read beside: partitioned, MindSpore may raise it before it is read
        count = self.assignadd(self.global_step, self.global_step_increase_tensor)
        k = self.cast(self.reshape(count, ()), ms.float32)
        lr = self.schedule(k)
        fresh = self.pow(k, DECAY_EXPONENT)  # 1 - b
        done = ()
        for i in range(len(self.factored)):
            done += (self.update(i, gradients[i], lr, fresh),)
        return self.depend(lr, done)

    def update(self, i: int, g: Tensor, lr: Tensor, fresh: Tensor) -> bool:
        """One weight's step."""
        p, m = self.parameters[i], self.m[i]
        scale = self.maximum(self.rms(i, p), SMALLEST_SCALE)
        u = self.mul(g, self.inverse_root_of_v(i, g, fresh))
        size = lr * scale * (1.0 - MOMENTUM)
        if self.update_clip > 0:
            size = size / self.maximum(self.rms(i, u) / self.update_clip, 1.0)
        new_m = self.add(self.mul(m, MOMENTUM), self.mul(u, size))
        kept = self.mul(p, 1.0 - lr * lr) if self.lr_squared_decay else p
        self.assign(m, new_m)
        self.assign(p, self.sub(kept, new_m))
        return True

    def inverse_root_of_v(self, i: int, g: Tensor, fresh: Tensor) -> Tensor:
        """Updates v and returns ``1 / sqrt(v)``, in the shape of g or one that broadcasts to it."""
        square, v = self.add(self.square(g), TINY), self.v[i]
        if self.factored[i]:
            row = self.blend(v, self.mean(square, 1), fresh)
            column = self.blend(self.v_column[i], self.mean(square, 0), fresh)
            self.assign(v, row)
            self.assign(self.v_column[i], column)
            row = self.rsqrt(row / self.mean(row))
            return self.mul(self.reshape(row, (-1, 1)), self.rsqrt(self.reshape(column, (1, -1))))
        new_v = self.blend(v, square, fresh)
        self.assign(v, new_v)
        return self.rsqrt(new_v)

    def blend(self, old: Tensor, new: Tensor, fresh: Tensor) -> Tensor:
        """``b*old + (1-b)*new``."""
        return self.add(self.mul(old, 1.0 - fresh), self.mul(new, fresh))

    def rms(self, i: int, x: Tensor) -> Tensor:
        """Root mean square over the whole of a tensor that lies as weight i does."""
        squares = self.over_slices(i, self.sum(self.row_squares(x)))
        return self.sqrt(squares * (1.0 / self.sizes[i]))


def _zeros(name: str, shape: tuple[int, ...]) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name)

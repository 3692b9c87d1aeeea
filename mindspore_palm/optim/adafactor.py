"""Adafactor as PaLM used it (section 5 of the paper, order of operations of T5X).

Unfactored, it saves no memory: v and m are as large as the weights. The factored variant, ``FactoredAdafactor``, keeps
one row and one column instead of v. It is a setting.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindspore_palm.config import OptimizerConfig
from mindspore_palm.optim.norm import SumRows
from mindspore_palm.optim.schedule import Schedule
from mindspore_palm.parallel.sums import SumOverShards
from mindspore_palm.parallel.weights import zeros_like

MOMENTUM = 0.9
DECAY_EXPONENT = -0.8
TINY = 1e-30  # added to g*g, so that the root of v is never zero
SMALLEST_SCALE = 1e-3


class Adafactor(nn.Optimizer):
    """For k = 1, 2, ... and every weight p with gradient g::

        s = max(1e-3, rms(p))
        b = 1 - k^-0.8
        v = b*v + (1-b)*(g*g + 1e-30)
        u = g / sqrt(v);   u /= max(1, rms(u) / update_clip)
        m = 0.9*m + 0.1*(lr*s*u)
        p = (1 - lr^2)*p - m

    Args:
        parameters: the weights.
        config: ``update_clip`` and ``lr_squared_decay`` are read here.
        schedule: the learning rate of step k.

    ``construct(gradients)`` updates the weights and returns the learning rate of the step, float32 [].
    """

    def __init__(self, parameters: list[Parameter], config: OptimizerConfig, schedule: Schedule) -> None:
        super().__init__(0.0, parameters)
        self.schedule = schedule
        self.update_clip, self.lr_squared_decay = config.update_clip, config.lr_squared_decay
        self.numbers, self.over_slices = tuple(range(len(self.parameters))), SumOverShards(self.parameters)
        self.one_by_sizes = Tensor(np.array([1.0 / p.size for p in self.parameters], np.float32))
        self.m, self.v = zeros_like(self.parameters, "m"), self.zero_second_moments()
        # MS-20, HyperMap instead of loops: MindSpore unrolls a loop into nested calls. Where these write Parameters,
        # compile time grows faster than the square of their number; at 118 layers it dominated
        self.map, self.partial = ops.HyperMap(), ops.Partial()
        self.sum_rows, self.sum, self.stack, self.unstack = SumRows(), ops.ReduceSum(), ops.Stack(), ops.Unstack()
        self.mul, self.add, self.sub = ops.Mul(), ops.Add(), ops.Sub()
        self.square, self.sqrt, self.rsqrt, self.pow = ops.Square(), ops.Sqrt(), ops.Rsqrt(), ops.Pow()
        self.maximum, self.cast, self.assign, self.reshape = ops.Maximum(), ops.Cast(), ops.Assign(), ops.Reshape()

    def zero_second_moments(self) -> ParameterTuple:
        return zeros_like(self.parameters, "v")

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        k = self.next_step()
        lr, fresh = self.schedule(k), self.pow(k, DECAY_EXPONENT)  # 1 - b
        decay = 1.0 - lr * lr if self.lr_squared_decay else 1.0
        u = self.map(self.partial(self.direction, fresh), self.numbers, gradients, self.v)
        sizes = lr * self.maximum(self.rms(self.parameters), SMALLEST_SCALE)
        if self.update_clip > 0:
            sizes = sizes / self.maximum(self.rms(u) / self.update_clip, 1.0)
        self.map(self.partial(self.update, decay), self.unstack(sizes), u, self.parameters, self.m)
        return lr

    def update(self, decay: Tensor, size: Tensor, u: Tensor, p: Parameter, m: Parameter) -> bool:
        """Writes m and p of one weight; ``size`` is lr*s divided by the clip of u, ``decay`` the factor of p."""
        new_m = self.add(self.mul(m, MOMENTUM), self.mul(u, size * (1.0 - MOMENTUM)))
        self.assign(m, new_m)
        self.assign(p, self.sub(self.mul(p, decay), new_m))
        return True

    def direction(self, fresh: Tensor, i: int, g: Tensor, v: Parameter) -> Tensor:
        """Writes v of weight i, and returns ``u = g / sqrt(v)``."""
        new_v = self.blend(v, self.add(self.square(g), TINY), fresh)
        self.assign(v, new_v)
        return self.mul(g, self.rsqrt(new_v))

    def blend(self, old: Tensor, new: Tensor, fresh: Tensor) -> Tensor:
        """``b*old + (1-b)*new``."""
        return self.add(self.mul(old, 1.0 - fresh), self.mul(new, fresh))

    def next_step(self) -> Tensor:
        """k, float32 []: the result of the increment; a separate read may give the old count if partitioned (MS-16)."""
        count = self.assignadd(self.global_step, self.global_step_increase_tensor)
        return self.cast(self.reshape(count, ()), ms.float32)

    def rms(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Root mean square of each unsharded tensor: float32 [weights]. Tensors are sharded as the weights are.

        One all-reduce for all of them. One for each weight came to 708 at 118 layers, each waiting for the last.
        """
        squares = self.over_slices(self.stack(self.map(self.partial(self.sum_of_squares), tensors)))
        return self.sqrt(squares * self.one_by_sizes)

    def sum_of_squares(self, x: Tensor) -> Tensor:
        """Sum of squares of this device's shard of a tensor."""
        return self.sum(self.sum_rows(self.square(x)))


class FactoredAdafactor(Adafactor):
    """Adafactor with v of a matrix as ``row * column / mean(row)``, from the means of g*g over columns and over rows.

    Vectors keep an unfactored v.
    """

    def __init__(self, parameters: list[Parameter], config: OptimizerConfig, schedule: Schedule) -> None:
        self.factored = tuple(p.ndim == 2 for p in parameters)
        super().__init__(parameters, config, schedule)
        self.v_column = ParameterTuple(
            _zeros(f"v_column.{p.name}", p.shape[1:] if factored else ())  # a vector has an unused scalar
            for p, factored in zip(self.parameters, self.factored, strict=True)
        )
        self.mean = ops.ReduceMean()

    def zero_second_moments(self) -> ParameterTuple:
        return ParameterTuple(_zeros(f"v.{p.name}", p.shape[:1]) for p in self.parameters)

    def direction(self, fresh: Tensor, i: int, g: Tensor, v: Parameter) -> Tensor:
        square = self.add(self.square(g), TINY)
        if self.factored[i]:
            row = self.blend(v, self.mean(square, 1), fresh)
            column = self.blend(self.v_column[i], self.mean(square, 0), fresh)
            self.assign(v, row)
            self.assign(self.v_column[i], column)
            row = self.rsqrt(row / self.mean(row))
            return self.mul(self.mul(g, self.reshape(row, (-1, 1))), self.rsqrt(self.reshape(column, (1, -1))))
        new_v = self.blend(v, square, fresh)
        self.assign(v, new_v)
        return self.mul(g, self.rsqrt(new_v))


def _zeros(name: str, shape: tuple[int, ...]) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name)

"""Adafactor as PaLM used it (section 5 of the paper, order of operations of T5X).

Without factoring it saves no memory: v and m are as large as the weights. The factored variant does (one row and one
column instead of v) and is a setting: ``FactoredAdafactor``.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindspore_palm.config import OptimizerConfig
from mindspore_palm.optim.norm import SumRows
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

    Args:
        parameters: the weights.
        config: ``update_clip`` and ``lr_squared_decay`` are read here.
        schedule: the learning rate of step k.

    ``construct(gradients)`` changes the weights and returns the learning rate it used, float32 [].
    """

    def __init__(self, parameters: list[Parameter], config: OptimizerConfig, schedule: Schedule) -> None:
        super().__init__(0.0, parameters)
        self.schedule = schedule
        self.update_clip, self.lr_squared_decay = config.update_clip, config.lr_squared_decay
        self.sizes, self.over_slices = tuple(p.size for p in self.parameters), SumOverSlices(self.parameters)
        self.m, self.v = zeros_like(self.parameters, "m"), self.zero_second_moments()
        self.sum_rows, self.sum = SumRows(), ops.ReduceSum()
        self.map, self.partial, self.numbers = ops.HyperMap(), ops.Partial(), tuple(range(len(self.parameters)))
        self.mul, self.add, self.sub = ops.Mul(), ops.Add(), ops.Sub()
        self.square, self.sqrt, self.rsqrt, self.pow = ops.Square(), ops.Sqrt(), ops.Rsqrt(), ops.Pow()
        self.maximum, self.cast, self.assign, self.reshape = ops.Maximum(), ops.Cast(), ops.Assign(), ops.Reshape()

    def zero_second_moments(self) -> ParameterTuple:
        return zeros_like(self.parameters, "v")

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        k = self.next_step()
        lr, fresh = self.schedule(k), self.pow(k, DECAY_EXPONENT)  # 1 - b
        keep = 1.0 - lr * lr if self.lr_squared_decay else 1.0
        # a map and no loop: MindSpore unrolls a loop into calls within calls, and where those write Parameters, time
        # to compile grows faster than the square of their number; at 118 layers it was most of all
        self.map(self.partial(self.update, lr, fresh, keep), self.numbers, gradients, self.parameters, self.m, self.v)
        return lr

    def update(
        self, lr: Tensor, fresh: Tensor, keep: Tensor, i: int, g: Tensor, p: Parameter, m: Parameter, v: Parameter
    ) -> bool:
        """The step of weight i; ``keep`` is what it keeps of p before its update."""
        u = self.mul(g, self.inverse_root(i, g, v, fresh))
        size = lr * self.scale(i, p) * self.clip(i, u)
        new_m = self.add(self.mul(m, MOMENTUM), self.mul(u, size * (1.0 - MOMENTUM)))
        self.assign(m, new_m)
        self.assign(p, self.sub(self.mul(p, keep), new_m))
        return True

    def inverse_root(self, i: int, g: Tensor, v: Parameter, fresh: Tensor) -> Tensor:
        """Updates v and returns ``1 / sqrt(v)``, in the shape of g or one that broadcasts to it."""
        new_v = self.blend(v, self.add(self.square(g), TINY), fresh)
        self.assign(v, new_v)
        return self.rsqrt(new_v)

    def blend(self, old: Tensor, new: Tensor, fresh: Tensor) -> Tensor:
        """``b*old + (1-b)*new``."""
        return self.add(self.mul(old, 1.0 - fresh), self.mul(new, fresh))

    def next_step(self) -> Tensor:
        """k, float32 []: the count that was raised; one that is read beside it may be old in a partitioned graph."""
        count = self.assignadd(self.global_step, self.global_step_increase_tensor)
        return self.cast(self.reshape(count, ()), ms.float32)

    def scale(self, i: int, p: Parameter) -> Tensor:
        """s."""
        return self.maximum(self.rms(i, p), SMALLEST_SCALE)

    def clip(self, i: int, u: Tensor) -> Tensor | float:
        """What u is multiplied with so that its root mean square is at most ``update_clip``."""
        return 1.0 / self.maximum(self.rms(i, u) / self.update_clip, 1.0) if self.update_clip > 0 else 1.0

    def rms(self, i: int, x: Tensor) -> Tensor:
        """Root mean square over the whole of a tensor that lies as weight i does."""
        squares = self.over_slices(i, self.sum(self.sum_rows(self.square(x))))
        return self.sqrt(squares * (1.0 / self.sizes[i]))


class FactoredAdafactor(Adafactor):
    """The same with v of a matrix as ``row * column / mean(row)``, of the means of g*g over columns and over rows.

    Of a vector, v is whole.
    """

    def __init__(self, parameters: list[Parameter], config: OptimizerConfig, schedule: Schedule) -> None:
        self.factored = tuple(p.ndim == 2 for p in parameters)
        super().__init__(parameters, config, schedule)
        self.v_column = ParameterTuple(
            _zeros(f"v_column.{p.name}", p.shape[1:] if factored else ())  # of a whole v, an unused scalar
            for p, factored in zip(self.parameters, self.factored, strict=True)
        )
        self.mean = ops.ReduceMean()

    def zero_second_moments(self) -> ParameterTuple:
        return ParameterTuple(_zeros(f"v.{p.name}", p.shape[:1]) for p in self.parameters)

    def inverse_root(self, i: int, g: Tensor, v: Parameter, fresh: Tensor) -> Tensor:
        square = self.add(self.square(g), TINY)
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


def _zeros(name: str, shape: tuple[int, ...]) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name)

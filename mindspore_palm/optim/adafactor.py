"""Adafactor as PaLM used it (section 5 of the paper, order of operations of T5X).

PaLM did not factor the second moment, so v and m are as large as the weights. The setting ``factored`` selects
``FactoredAdafactor``, which stores the row and column means of a matrix instead of its v.
"""

from __future__ import annotations

from math import prod

import numpy as np
from mindspore import Parameter, Tensor, ops

from mindspore_palm.config import OptimizerConfig
from mindspore_palm.optim.norm import SumRows
from mindspore_palm.optim.optimizer import FLOAT, Optimizer, Shape
from mindspore_palm.optim.schedule import Schedule
from mindspore_palm.parallel.sums import SumAlongSides, SumOverShards

MOMENTUM = 0.9
DECAY_EXPONENT = -0.8
TINY = 1e-30  # added to g*g, so that the root of v is never zero
SMALLEST_SCALE = 1e-3


class Adafactor(Optimizer):
    """For k = 1, 2, ... and every weight p with gradient g::

        s = max(1e-3, rms(p))
        b = 1 - k^-0.8
        v = b*v + (1-b)*(g*g + 1e-30)
        u = g / sqrt(v);   u /= max(1, rms(u) / update_clip)
        m = 0.9*m + 0.1*(lr*s*u)
        p = (1 - lr^2)*p - m

    Arguments and result are those of ``Optimizer``.
    """

    def __init__(self, parameters: list[Parameter], config: OptimizerConfig, schedule: Schedule) -> None:
        super().__init__(parameters, config, schedule)
        self.update_clip, self.lr_squared_decay = config.update_clip, config.lr_squared_decay
        self.over_slices = SumOverShards(self.parameters)
        self.one_by_sizes = Tensor(np.array([1.0 / p.size for p in self.parameters], np.float32))
        self.m, self.v = self.zeros("m"), self.zeros("v")
        # MS-20, HyperMap instead of loops: MindSpore unrolls a loop into nested calls. If these write Parameters,
        # compile time grows faster than the square of their number, and dominated at 118 layers
        self.map, self.partial = ops.HyperMap(), ops.Partial()
        self.sum_rows, self.sum, self.stack, self.unstack = SumRows(), ops.ReduceSum(), ops.Stack(), ops.Unstack()
        self.mul, self.add, self.sub = ops.Mul(), ops.Add(), ops.Sub()
        self.square, self.sqrt, self.rsqrt, self.pow = ops.Square(), ops.Sqrt(), ops.Rsqrt(), ops.Pow()
        self.maximum, self.assign = ops.Maximum(), ops.Assign()

    @classmethod
    def variant(cls, config: OptimizerConfig) -> type[Optimizer]:
        return FactoredAdafactor if config.factored else Adafactor

    def fused_settings(self) -> tuple[float, ...]:
        constants = MOMENTUM, DECAY_EXPONENT, TINY, SMALLEST_SCALE
        return 1, self.update_clip, float(self.lr_squared_decay), *constants

    @staticmethod
    def moments(shape: Shape) -> dict[str, Shape]:
        return {"m": shape, "v": shape}

    @staticmethod
    def traffic(shape: Shape) -> int:
        """Reads g and v, writes v and u; reads p and u for their rms; reads u, p and m, writes m and p."""
        return 11 * FLOAT * prod(shape)

    @staticmethod
    def temporaries(shape: Shape) -> int:
        """u: the updates of all weights are ready before their rms is reduced, in one all-reduce."""
        return FLOAT * prod(shape)

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        k = self.next_step()
        lr, fresh = self.schedule(k), self.pow(k, DECAY_EXPONENT)  # 1 - b
        decay = 1.0 - lr * lr if self.lr_squared_decay else 1.0
        u = self.directions(fresh, gradients)
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

    def directions(self, fresh: Tensor, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """``u`` of every weight before its clip; writes v."""
        return self.map(self.partial(self.direction, fresh), gradients, self.v)

    def direction(self, fresh: Tensor, g: Tensor, v: Parameter) -> Tensor:
        """Writes v of one weight, and returns ``u = g / sqrt(v)``."""
        new_v = self.blend(v, self.add(self.square(g), TINY), fresh)
        self.assign(v, new_v)
        return self.mul(g, self.rsqrt(new_v))

    def blend(self, old: Tensor, new: Tensor, fresh: Tensor) -> Tensor:
        """``b*old + (1-b)*new``."""
        return self.add(self.mul(old, 1.0 - fresh), self.mul(new, fresh))

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
    """Adafactor that stores v of a matrix as two vectors: the means of ``g*g + 1e-30`` over columns and over rows.

    v is ``row * column / mean(row)``. Vectors keep an unfactored v. Both means are those of the unsharded matrix, and
    every device stores them in full.
    """

    def __init__(self, parameters: list[Parameter], config: OptimizerConfig, schedule: Schedule) -> None:
        super().__init__(parameters, config, schedule)
        matrices = [i for i, p in enumerate(self.parameters) if p.ndim == 2]
        self.matrices, self.indices = tuple(matrices), tuple(range(len(self.parameters)))
        self.side = tuple(2 * matrices.index(i) if i in matrices else -1 for i in self.indices)
        self.shapes = tuple(tuple(p.shape) for p in self.parameters)
        self.along_sides = SumAlongSides([self.parameters[i] for i in matrices])
        self.v_column, self.mean, self.expand = self.zeros("v_column"), ops.ReduceMean(), ops.ExpandDims()

    fused_settings = Optimizer.fused_settings  # the function does not have it

    @staticmethod
    def moments(shape: Shape) -> dict[str, Shape]:
        """The row means of a matrix have the name v."""
        return {"m": shape, "v": shape[:1], "v_column": shape[1:]} if len(shape) == 2 else {"m": shape, "v": shape}

    @staticmethod
    def traffic(shape: Shape) -> int:
        """For a matrix, g is read twice, for the means and for u. The two vectors are read and written."""
        if len(shape) != 2:
            return Adafactor.traffic(shape)
        return FLOAT * (10 * prod(shape) + 2 * sum(shape))

    def directions(self, fresh: Tensor, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        own = self.own_means(gradients)
        update = self.partial(self.factored_direction, fresh, own, self.along_sides(own))
        return self.map(update, self.indices, gradients, self.v, self.v_column)

    def own_means(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Shares of this device in the row means and column means of ``g*g + 1e-30``, [r] and [c] for each matrix."""
        means = ()
        for i in self.matrices:
            rows, columns = self.shapes[i]
            square = self.add(self.square(gradients[i]), TINY)
            means += (self.mul(self.sum(square, 1), 1.0 / columns), self.mul(self.sum(square, 0), 1.0 / rows))
        return means

    def factored_direction(
        self,
        fresh: Tensor,
        own: tuple[Tensor, ...],
        means: tuple[Tensor, ...],
        i: int,
        g: Tensor,
        v: Parameter,
        v_column: Parameter,
    ) -> Tensor:
        """As ``direction``, for weight i; also writes its column means. ``own`` and ``means``: of shards, and full."""
        if self.side[i] < 0:
            return self.direction(fresh, g, v)
        rows, columns = self.side[i], self.side[i] + 1
        row, column = self.blend(v, means[rows], fresh), self.blend(v_column, means[columns], fresh)
        self.assign(v, row)
        self.assign(v_column, column)
        row = self.along_sides.own[rows](self.rsqrt(row / self.mean(row)), own[rows])
        column = self.along_sides.own[columns](self.rsqrt(column), own[columns])
        return self.mul(self.mul(g, self.expand(row, 1)), self.expand(column, 0))

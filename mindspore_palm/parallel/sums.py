"""Sums over sharded tensors, for the optimizer and for clipping (MS-10)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.communication import create_group
from mindspore.ops.auto_generate import SplitWithSize

from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.parallel.mesh import STAGE
from mindspore_palm.parallel.weights import placement_of


def replicas(weight: Parameter) -> int:
    """The number of devices that hold the same shard of a weight; 1 on one device."""
    return 1 if current_layout().devices == 1 else placement_of(weight).replicas


class SumOverDevices(nn.Cell):
    """All-reduce (sum) over all devices of float32 of any shape; the identity on one device.

    MS-53: a tensor that is summed here must not be reduced in any other way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.several = current_layout().devices > 1
        self.all_reduce = ops.AllReduce() if self.several else None

    def construct(self, x: Tensor) -> Tensor:
        return self.all_reduce(x) if self.several else x


class SumOverStage(SumOverDevices):
    """The same over the devices of this stage alone. A plan computes nothing, and has no groups of its own."""

    def __init__(self) -> None:
        super().__init__()
        layout = current_layout()
        mesh = layout.mesh
        self.several = mesh.stage_devices > 1
        if self.several and mesh.stages > 1 and not layout.planned:
            ranks = mesh.group(this_rank(), set(mesh.sizes) - {STAGE})
            self.all_reduce = ops.AllReduce(group=_group(ranks[0], ranks[-1]))


@cache
def _group(first: int, last: int) -> str:
    """The name of the communication group of consecutive ranks, which is made once."""
    name = f"ranks_{first}_to_{last}"
    create_group(name, list(range(first, last + 1)))
    return name


class SumOverShards(nn.Cell):
    """From sums over this device's shards of weights to sums over the full weights, in one all-reduce for all of them.

    The all-reduce is over the devices of a stage; each counts with 1 / the number of replicas of its shard.

    ``construct(x)``: float32 [weights] to the same shape: one sum per weight, over something sharded as the weight is.
    """

    def __init__(self, weights: Sequence[Parameter]) -> None:
        super().__init__()
        self.over_stage = SumOverStage()
        self.shares = Tensor(np.array([1.0 / replicas(weight) for weight in weights], np.float32))

    def construct(self, x: Tensor) -> Tensor:
        return self.over_stage(x * self.shares) if self.over_stage.several else x


class OwnEntries(nn.Cell):
    """Entries of this device's shard in a vector along one side of a matrix, as of its row means.

    ``construct(x, like)`` takes them: from float32 [N] to [n], the shape of ``like``; on one device, all of them.
    ``place(x)`` is its transpose: [n] to [N], with zeros in the entries of other devices.

    MS-59: the graph is first traced with the sizes of unsharded tensors, so no size of a shard is in it. The indices
    are counted from the tensor itself.
    """

    def __init__(self, matrix: Parameter, side: int) -> None:
        super().__init__()
        placement, self.several = placement_of(matrix), current_layout().mesh.stage_devices > 1
        windows = placement.windows(this_rank())[: placement.parts if side == 1 else 1]  # parts are of the columns
        self.size, self.equal = (placement.shape[side],), ops.Equal()
        self.split, self.join = ops.Split(0, len(windows)), ops.Concat()
        self.before_first = tuple(w[side].start - 1 for w in windows)
        self.parts, self.cast, self.count = len(windows), ops.Cast(), ops.CumSum()
        self.gather, self.scatter, self.expand = ops.Gather(), ops.ScatterNd(), ops.ExpandDims()

    def construct(self, x: Tensor, like: Tensor) -> Tensor:
        return self.gather(x, self.indices(like), 0) if self.several else x

    def place(self, x: Tensor) -> Tensor:
        return self.scatter(self.expand(self.indices(x), 1), x, self.size)

    def indices(self, like: Tensor) -> Tensor:
        """Where the entries are in the full vector: int32 [n]."""
        ones, own = self.cast(self.equal(like, like), ms.int32), ()
        for i in range(self.parts):
            own += (self.count(self.split(ones)[i], 0) + self.before_first[i],)
        return self.join(own)


class SumAlongSides(nn.Cell):
    """From sums along the rows and columns of this device's shards of matrices to those of the full matrices.

    One all-reduce for all of them, in which each device fills its own entries, and counts with 1 / the number of
    replicas of its shard. The identity on one device.

    ``construct(sums)``: for each matrix [R, C] two vectors, float32 [r] and [c] of its shard; to the full [R] and [C],
    which are equal on all devices of the stage. ``own[k]`` takes the entries of this device's shard from vector k.
    """

    def __init__(self, matrices: Sequence[Parameter]) -> None:
        super().__init__()
        sides = [(matrix, side) for matrix in matrices for side in (0, 1)]
        self.over_stage = SumOverStage()
        self.own = nn.CellList([OwnEntries(matrix, side) for matrix, side in sides])
        self.shares = tuple(1.0 / replicas(matrix) for matrix, _ in sides)
        self.sizes = tuple(placement_of(matrix).shape[side] for matrix, side in sides)
        self.join, self.split = ops.Concat(), SplitWithSize()

    def construct(self, sums: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not self.over_stage.several:
            return sums
        placed = ()
        for i in range(len(self.sizes)):
            placed += (self.own[i].place(sums[i] * self.shares[i]),)
        return self.split(self.over_stage(self.join(placed)), self.sizes, 0)

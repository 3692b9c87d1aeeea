"""Sums over sharded tensors, for the optimizer and for clipping (MS-10)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.communication import create_group

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


class SumOverStage(nn.Cell):
    """All-reduce (sum) over the devices of this stage of float32 of any shape; over all devices without a pipeline."""

    def __init__(self) -> None:
        super().__init__()
        mesh = current_layout().mesh
        self.several = mesh.stage_devices > 1
        if self.several and mesh.stages > 1:
            self.all_reduce = all_reduce_among(mesh.group(this_rank(), set(mesh.sizes) - {STAGE}))
        else:
            self.all_reduce = ops.AllReduce() if self.several else None

    def construct(self, x: Tensor) -> Tensor:
        return self.all_reduce(x) if self.several else x


def all_reduce_among(ranks: Sequence[int]) -> ops.AllReduce:
    """All-reduce (sum) among some ranks, which all make it. A plan computes nothing, and has no groups of its own."""
    return ops.AllReduce() if current_layout().planned else ops.AllReduce(group=_group(tuple(ranks)))


@cache
def _group(ranks: tuple[int, ...]) -> str:
    """The name of a communication group, which is made once."""
    name = f"{len(ranks)}_ranks_{ranks[0]}_to_{ranks[-1]}"
    create_group(name, list(ranks))
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

"""Sums over sharded tensors, for the optimizer and for clipping (MS-10)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindspore_palm.parallel.axes import current_layout
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


class SumOverShards(nn.Cell):
    """From sums over this device's shards of weights to sums over the full weights, in one all-reduce for all of them.

    The all-reduce is over all devices; each counts with 1 / the number of replicas of its shard.

    ``construct(x)``: float32 [weights] to the same shape: one sum per weight, over something sharded as the weight is.
    """

    def __init__(self, weights: Sequence[Parameter]) -> None:
        super().__init__()
        self.over_devices = SumOverDevices()
        self.shares = Tensor(np.array([1.0 / replicas(weight) for weight in weights], np.float32))

    def construct(self, x: Tensor) -> Tensor:
        return self.over_devices(x * self.shares) if self.over_devices.several else x

"""Sums over tensors of which a device holds a slice: what the optimizer and the clip see (MS-10)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.weights import placement_of


def replicas(weight: Parameter) -> int:
    """How many devices hold the same slice of a weight; one on one device."""
    return 1 if current_layout().devices == 1 else placement_of(weight).replicas


class SumOverDevices(nn.Cell):
    """Adds up what every device brings, float32 of any shape; on one device, what it brings.

    MS-53: a tensor that is summed here is reduced in no other way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.several = current_layout().devices > 1
        self.all_reduce = ops.AllReduce() if self.several else None

    def construct(self, x: Tensor) -> Tensor:
        return self.all_reduce(x) if self.several else x


class SumOverShards(nn.Cell):
    """From sums over this device's slices of weights to sums over the whole weights, in one exchange for all of them.

    Summed over all devices, each counting as one of the replicas that hold the same slice.

    ``construct(x)``: float32 [weights], of something that lies as each weight does, to the same.
    """

    def __init__(self, weights: Sequence[Parameter]) -> None:
        super().__init__()
        self.over_devices = SumOverDevices()
        self.shares = Tensor(np.array([1.0 / replicas(weight) for weight in weights], np.float32))

    def construct(self, x: Tensor) -> Tensor:
        return self.over_devices(x * self.shares) if self.over_devices.several else x

"""The update of all weights on one CPU (MS-69), with norm and clipping of their gradients, as one C++ function."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindspore_palm.optim.optimizer import Optimizer
from mindspore_palm.parallel import fused


def usable(optimizer: Optimizer) -> bool:
    """Whether the function updates the weights of this optimizer on this machine."""
    return has_function(type(optimizer)) and fused.usable()


def has_function(optimizer: type[Optimizer]) -> bool:
    """Whether the function has the update of an optimizer."""
    return optimizer.fused_settings is not Optimizer.fused_settings


class FusedUpdate(nn.Cell):
    """Clips gradients and updates weights; changes nothing if the loss or a gradient is not finite.

    Args:
        optimizer: of the weights. Its moments and its number of updates are changed in place.
        clip_norm: global norm to which gradients are clipped; 0 for no clipping.
    """

    def __init__(self, optimizer: Optimizer, clip_norm: float) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        number, *own = optimizer.fused_settings()
        self.settings = Tensor(np.array([number, clip_norm, *own], np.float32))
        self.update = fused.custom("UpdateWeights", ([1], [1], [1]), 3)  # MS-70
        self.cast, self.reshape = ops.Cast(), ops.Reshape()

    def construct(self, loss: Tensor, gradients: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient norm, learning rate and whether the update was applied, float32 [] each."""
        optimizer = self.optimizer
        k = self.cast(self.reshape(optimizer.global_step, ()), ms.float32) + 1.0
        rate = optimizer.schedule(k)
        changed = *optimizer.parameters, *optimizer.m, *optimizer.v
        norm, rate, applied = self.update(loss, rate, optimizer.global_step, self.settings, *gradients, *changed)
        return self.reshape(norm, ()), self.reshape(rate, ()), self.reshape(applied, ())

"""The base of all optimizers. Each is one file: a class with its moments, its memory traffic and its update.

Its settings are the fields of ``OptimizerConfig`` that are marked ``ReadBy`` its name. Checkpoints store its moments.
The memory estimate and the cost model ask the class. So none of them knows an optimizer by name. ``registry.py`` lists
the classes.
"""

from __future__ import annotations

from math import prod

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindspore_palm.config import OptimizerConfig
from mindspore_palm.optim.schedule import Schedule
from mindspore_palm.parallel.weights import zeros_beside, zeros_like

Shape = tuple[int, ...]
FLOAT = 4  # bytes; weights, gradients and moments are float32


class Optimizer(nn.Optimizer):
    """Updates weights from their gradients.

    Args:
        parameters: the weights.
        config: a subclass reads its own settings here.
        schedule: the learning rate of step k.

    ``construct(gradients)`` updates the weights and returns the learning rate of the step, float32 [].

    ``moments``, ``traffic`` and ``temporaries`` take the shape of a weight, or of the shard that a device holds of it.
    """

    def __init__(self, parameters: list[Parameter], config: OptimizerConfig, schedule: Schedule) -> None:
        super().__init__(0.0, parameters)
        self.schedule, self.cast, self.reshape = schedule, ops.Cast(), ops.Reshape()

    @classmethod
    def variant(cls, config: OptimizerConfig) -> type[Optimizer]:
        """The class to use with these settings: this one, unless settings choose between several."""
        return cls

    @staticmethod
    def moments(shape: Shape) -> dict[str, Shape]:
        """Name and shape of each float32 tensor that a weight of this shape has from step to step.

        A checkpoint stores it as the moment's name, a dot and the weight's name.
        """
        raise NotImplementedError

    def fused_settings(self) -> tuple[float, ...]:
        """Number of the optimizer in the C++ function that updates all weights, and its settings there.

        Empty for an optimizer that the function does not have.
        """
        return ()

    @staticmethod
    def traffic(shape: Shape) -> int:
        """Bytes of device memory that one step reads and writes to update a weight of this shape."""
        raise NotImplementedError

    @staticmethod
    def temporaries(shape: Shape) -> int:
        """Bytes that a weight of this shape needs until all weights are updated, beside its gradient and moments."""
        return 0

    @classmethod
    def state_bytes(cls, shape: Shape, shard: Shape | None = None) -> int:
        """Bytes that a device stores of all moments of a weight of this shape.

        Args:
            shape: of the full weight.
            shard: what the device holds of it; None for all. Moments of another shape than the weight's are not
                sharded, as ``zeros`` has it.
        """
        own = shape if shard is None else shard
        return FLOAT * sum(prod(own if moment == shape else moment) for moment in cls.moments(shape).values())

    def zeros(self, moment: str) -> ParameterTuple:
        """A moment of each weight, filled with zeros. A weight that does not have it gets a scalar that nobody reads.

        Moments with the shapes of their weights are sharded as these are. Others are replicated, on the weight's stage.
        """
        shapes = [self.moments(tuple(p.shape)).get(moment, ()) for p in self.parameters]
        if shapes == [tuple(p.shape) for p in self.parameters]:
            return zeros_like(self.parameters, moment)
        return ParameterTuple(zeros_beside(p, moment, shape) for p, shape in zip(self.parameters, shapes, strict=True))

    def next_step(self) -> Tensor:
        """k, float32 []: the result of the increment; a separate read may give the old count if partitioned (MS-16)."""
        count = self.assignadd(self.global_step, self.global_step_increase_tensor)
        return self.cast(self.reshape(count, ()), ms.float32)

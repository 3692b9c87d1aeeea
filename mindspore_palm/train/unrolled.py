"""One optimizer step as one graph of all its micro-batches, so that gradients are reduced once.

MindSpore slices a batch into micro-batches, and in a pipeline schedules them on stages.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, lazy_inline, nn, ops
from mindspore.parallel.nn import GradAccumulation, Pipeline

from mindspore_palm.model.loss import Loss
from mindspore_palm.parallel.axes import current_layout, shard
from mindspore_palm.parallel.context import partition
from mindspore_palm.parallel.stages import FromLastStage
from mindspore_palm.parallel.weights import zeros_like
from mindspore_palm.train.step import BATCH_AXES, StepResult, Update, state_of


class Sums(nn.Cell):
    """Sums over the tokens of a micro-batch: int32 [B, S] twice to float32 [1, 2], cross-entropy and z-loss.

    The gradient of both together is that of the loss times the number of tokens. The number itself cannot be an input,
    because ``Pipeline`` and ``GradAccumulation`` slice every input. Two outputs have no gradient there (MS-60).
    """

    @lazy_inline  # compiled once for all micro-batches; interleaved schedules need it
    def __init__(self, loss: Loss) -> None:
        super().__init__(auto_prefix=False)
        self.loss, self.stack, self.reshape = loss, shard(ops.Stack(), (), ()), ops.Reshape()

    def construct(self, inputs: Tensor, targets: Tensor) -> Tensor:
        cross_entropy, square_log_z = self.loss.sums(inputs, targets)
        return self.reshape(self.stack((cross_entropy, self.loss.z_weight * square_log_z)), (1, 2))


class Gradients(nn.Cell):
    """``Sums`` of a batch and the gradients of this stage's weights: int32 [B, S] twice to a tuple.

    Gradients are asked for all weights. Without those of earlier stages, nothing would be sent back to these.

    Args:
        loss: of the network.
        own: weights of this stage.
        elsewhere: weights of other stages.
        take_sums: takes gradients that MindSpore has summed over micro-batches. A single one is not summed.
        micro_batches: of the batch.
    """

    def __init__(
        self, loss: Loss, own: ParameterTuple, elsewhere: ParameterTuple, take_sums: TakeSums, micro_batches: int
    ) -> None:
        super().__init__(auto_prefix=False)
        self.own, self.take_sums, self.several = len(own), take_sums, micro_batches > 1
        sums = Sums(loss)
        if self.several:
            sums = (Pipeline if current_layout().mesh.stages > 1 else GradAccumulation)(sums, micro_batches)
        self.gradients = ops.value_and_grad(sums, None, own + elsewhere)
        self.depend = ops.Depend()

    def construct(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        sums, gradients = self.gradients(inputs, targets)
        if self.several:
            gradients = self.take_sums(gradients)
        return self.depend(sums, gradients), *gradients[: self.own]


class TakeSums(nn.Cell):
    """Gradients summed over micro-batches, of which MindSpore's own sums are cleared.

    MindSpore adds to Parameters that are called accu_grads. Where weights are fully sharded, its sums are of the full
    gradients, and it returns shards of them as the gradients. ``PipelineGradReducer`` does the same, except that it
    clears by a product with zero, which keeps what is not finite forever (MS-62).
    """

    def __init__(self, own: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.sums, self.sharded = zeros_like(own, "accu_grads"), current_layout().weight_shards > 1
        self.map, self.add, self.depend = ops.HyperMap(), ops.Add(), ops.Depend()
        self.less, self.cast, self.assign = ops.Less(), ops.Cast(), ops.Assign()

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.map(self.take, gradients, self.sums)

    def take(self, gradient: Tensor, total: Parameter) -> Tensor:
        """The gradient of one weight; clears its sum."""
        result = gradient if self.sharded else self.add(self.depend(total, gradient), 0.0)
        # ZerosLike would be a constant of the graph, as large as the weight; this is zero for NaN, too
        zeros = self.cast(self.less(total, total), ms.float32)
        return self.depend(result, self.assign(self.depend(total, result), zeros))


class UpdateFromGradients(nn.Cell):
    """The update of this stage's weights. A graph of its own, because a pipeline has no control flow (MS-60)."""

    def __init__(self, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.update, self.from_last_stage, self.reshape = update, FromLastStage(), ops.Reshape()

    def construct(self, count: Tensor, sums: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
        cross_entropy, z_loss = self.reshape(self.from_last_stage(sums), (2,)) / count
        loss = cross_entropy + z_loss
        norm, rate, finite = self.update(loss, gradients, count)
        return loss, cross_entropy, norm, rate, finite


class CrossEntropyOfSums(nn.Cell):
    """Cross-entropy of ``Sums`` on all devices: float32 [1, 2] to []."""

    def __init__(self) -> None:
        super().__init__()
        self.from_last_stage = FromLastStage()

    def construct(self, sums: Tensor) -> Tensor:
        return self.from_last_stage(sums)[0, 0]


class UnrolledStep:
    """Optimizer steps as ``TrainStep`` takes them, on any number of stages, with one graph for all micro-batches.

    Args:
        loss: of the network.
        optimizer: of the weights of this stage.
        clip_norm: global norm to which gradients are clipped; 0 for no clipping.
        micro_batch: sequences of a micro-batch on each worker; 0 for one micro-batch.
        elsewhere: the optimizer of the weights of the other stages, which is never called; None without a pipeline.

    ``state`` is everything that a step changes on any stage; the part of other stages takes no memory.
    """

    def __init__(
        self,
        loss: Loss,
        optimizer: nn.Optimizer,
        clip_norm: float,
        micro_batch: int,
        elsewhere: nn.Optimizer | None = None,
    ) -> None:
        self.micro_batch = micro_batch
        self.state = state_of(loss, optimizer, *([elsewhere] if elsewhere else []))
        self._loss, self._own = loss, optimizer.parameters
        self._elsewhere = elsewhere.parameters if elsewhere else ParameterTuple([])
        self._graphs: dict[int, nn.Cell] = {}  # by their number of micro-batches, which is a constant of a graph
        self._take_sums = TakeSums(self._own + self._elsewhere)
        self._nats = CrossEntropyOfSums()
        self._update = UpdateFromGradients(Update(optimizer, clip_norm, scaled=True))

    def __call__(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        tokens: int | None = None,
        dropout_mask: np.ndarray | None = None,
        loss_scale: float = 1.0,
    ) -> StepResult:
        """Takes one step. Arguments as for ``TrainStep``; there is no dropout, and the loss scale is not used."""
        if dropout_mask is not None:
            raise ValueError("an unrolled step has no dropout")  # check_layout refuses fine-tuning
        count = int((targets >= 0).sum()) if tokens is None else tokens
        sums, *gradients = self._graph(len(inputs))(Tensor(inputs), Tensor(targets))
        outcome = self._update(Tensor(np.float32(max(1, count))), sums, *gradients)
        loss, cross_entropy, norm, rate, finite = (tensor.asnumpy() for tensor in outcome)
        return StepResult(float(loss), float(cross_entropy), float(norm), float(rate), not bool(finite))

    def nats(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of all tokens of a batch: float32 []; of the same shape as a batch of training.

        Gradients are computed as well, and dropped: MindSpore has no interleaved pipeline without them, and a second
        graph would have its own copy of the table on the last stage (MS-63).
        """
        return self._nats(self._graph(inputs.shape[0])(inputs, targets)[0])

    def gradients(self, inputs: Tensor, targets: Tensor) -> tuple[ParameterTuple, tuple[Tensor, ...]]:
        """The weights of this stage, and their gradients of the loss times the number of tokens."""
        return self._own, self._graph(inputs.shape[0])(inputs, targets)[1:]

    def _graph(self, sequences: int) -> nn.Cell:
        micro_batches = sequences // (self.micro_batch or sequences)
        if micro_batches not in self._graphs:
            graph = Gradients(self._loss, self._own, self._elsewhere, self._take_sums, micro_batches).set_train()
            self._graphs[micro_batches] = partition(graph, *BATCH_AXES[:2])
        return self._graphs[micro_batches]

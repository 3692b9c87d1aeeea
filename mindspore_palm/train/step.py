"""One optimizer step as compiled graphs: loss, gradients, norm, clip, update."""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindspore_palm.model.loss import Loss
from mindspore_palm.optim import GlobalNorm, clip_factor
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.context import partition
from mindspore_palm.parallel.weights import zeros_like

BATCH_AXES = (("batch", "length"), ("batch", "length"), ())  # logical axes of inputs, targets and their count
DROPOUT_MASK = ("batch", "one", "embed")  # an input more, or none (MS-11: MindSpore partitions no None)


@dataclass(frozen=True)
class StepResult:
    """What one step did, in floats of the host."""

    loss: float
    """Cross-entropy + z-loss, nats a token."""
    cross_entropy: float
    """Nats a token."""
    gradient_norm: float
    """Global norm before the clip."""
    learning_rate: float
    """0 for a skipped step."""
    skipped: bool
    """The loss or a gradient was not finite, and nothing was changed."""


class Update(nn.Cell):
    """Clips gradients and updates weights, or changes nothing if the loss or a gradient is not finite."""

    def __init__(self, optimizer: nn.Optimizer, clip_norm: float) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer, self.clip_norm = optimizer, clip_norm
        self.norm = GlobalNorm(optimizer.parameters)
        self.is_finite, self.both, self.mul = ops.IsFinite(), ops.LogicalAnd(), ops.Mul()

    def construct(self, loss: Tensor, gradients: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns norm, learning rate and whether the step was taken."""
        norm = self.norm(gradients)
        finite = self.both(self.is_finite(norm), self.is_finite(loss))
        rate = Tensor(0.0, ms.float32)
        if finite:
            if self.clip_norm > 0:
                factor = clip_factor(norm, self.clip_norm)
                clipped = ()
                for gradient in gradients:
                    clipped += (self.mul(gradient, factor),)
                rate = self.optimizer(clipped)
            else:
                rate = self.optimizer(gradients)
        return norm, rate, finite


class Objective(nn.Cell):
    """What is differentiated: the loss over the number of devices, and beside it the loss and the cross-entropy.

    Every device of a mesh computes the whole loss, and the backward pass adds up what all of them send back: without
    the division, gradients would be as many times too large as there are devices (MS-04).
    """

    def __init__(self, loss: Loss) -> None:
        super().__init__(auto_prefix=False)
        self.loss, self.devices = loss, current_layout().devices

    def construct(
        self, inputs: Tensor, targets: Tensor, count: Tensor, *dropout_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss, cross_entropy = self.loss(inputs, targets, count, *dropout_mask)
        share = loss * (1.0 / self.devices) if self.devices > 1 else loss
        return share, loss, cross_entropy


class WholeStep(nn.Cell):
    """A step whose batch goes through in one pass: one graph."""

    def __init__(self, loss: Loss, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.objective, self.update = Objective(loss), update
        self.gradients = ops.value_and_grad(self.objective, None, update.optimizer.parameters, has_aux=True)

    def construct(self, inputs: Tensor, targets: Tensor, count: Tensor, *dropout_mask: Tensor) -> tuple[Tensor, ...]:
        (_, loss, cross_entropy), gradients = self.gradients(inputs, targets, count, *dropout_mask)
        norm, rate, finite = self.update(loss, gradients)
        return loss, cross_entropy, norm, rate, finite


class Accumulate(nn.Cell):
    """Adds the gradients of a part of the batch to ``sums``."""

    def __init__(self, loss: Loss, parameters: ParameterTuple, sums: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.objective, self.sums = Objective(loss), sums
        self.gradients = ops.value_and_grad(self.objective, None, parameters, has_aux=True)
        self.add, self.depend = ops.AssignAdd(), ops.Depend()

    def construct(self, inputs: Tensor, targets: Tensor, count: Tensor, *dropout_mask: Tensor) -> tuple[Tensor, Tensor]:
        (_, loss, cross_entropy), gradients = self.gradients(inputs, targets, count, *dropout_mask)
        done = ()
        for i in range(len(self.sums)):
            done += (self.add(self.sums[i], gradients[i]),)
        return self.depend(loss, done), cross_entropy


class UpdateFromSums(nn.Cell):
    """The update from accumulated gradients, which it sets back to zero."""

    def __init__(self, update: Update, sums: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.update, self.sums = update, sums
        self.zeros, self.assign, self.depend = ops.ZerosLike(), ops.Assign(), ops.Depend()

    def construct(self, loss: Tensor) -> tuple[Tensor, ...]:
        gradients = ()
        for total in self.sums:
            gradients += (total + 0.0,)  # a copy: the sums are cleared below
        norm, rate, finite = self.update(loss, gradients)
        done = ()
        for total in self.sums:
            done += (self.assign(total, self.depend(self.zeros(total), norm)),)
        return self.depend(norm, done), rate, finite


class TrainStep:
    """Steps of a loss by an optimizer, each of one pass or, with ``micro_batch``, of several.

    Built for the current layout. On several devices, a worker brings its own sequences and all workers call together.

    Args:
        loss: of the network.
        optimizer: over its weights.
        clip_norm: global norm to which gradients are clipped; 0 for no clipping.
        micro_batch: sequences of a pass that a worker brings; 0 takes what it brings whole.
        dropout: whether steps get a dropout mask.

    ``state`` is all that the next step needs: weights, their moments, the number of updates.
    """

    def __init__(
        self, loss: Loss, optimizer: nn.Optimizer, clip_norm: float, micro_batch: int = 0, dropout: bool = False
    ) -> None:
        self.micro_batch = micro_batch
        self.state = _state_of(loss, optimizer)
        update, batch = Update(optimizer, clip_norm), (*BATCH_AXES, DROPOUT_MASK) if dropout else BATCH_AXES
        self._whole = partition(WholeStep(loss, update).set_train(), *batch)
        if micro_batch:
            sums = zeros_like(optimizer.parameters, "gradient_sum")
            self._accumulate = partition(Accumulate(loss, optimizer.parameters, sums).set_train(), *batch)
            self._update = UpdateFromSums(update, sums)

    def __call__(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        tokens: int | None = None,
        dropout_mask: np.ndarray | None = None,
    ) -> StepResult:
        """One step.

        Args:
            inputs: int32 [B, S], this worker's sequences, pass by pass.
            targets: int32 [B, S]; a negative target is no real token.
            tokens: real tokens of the batch of all workers; None counts those that are given here.
            dropout_mask: float32 [B, 1 + layers, D]; None for no dropout.
        """
        if tokens is None:
            tokens = int((targets >= 0).sum())
        count = Tensor(np.float32(max(1, tokens)))
        if not self.micro_batch or len(inputs) == self.micro_batch:
            mask = () if dropout_mask is None else (Tensor(dropout_mask),)
            loss, cross_entropy, norm, rate, finite = self._whole(Tensor(inputs), Tensor(targets), count, *mask)
            return _result(loss.asnumpy(), cross_entropy.asnumpy(), norm, rate, finite)
        loss = cross_entropy = np.float32(0.0)
        for start in range(0, len(inputs), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            mask = () if dropout_mask is None else (Tensor(dropout_mask[rows]),)
            part = self._accumulate(Tensor(inputs[rows]), Tensor(targets[rows]), count, *mask)
            loss, cross_entropy = loss + part[0].asnumpy(), cross_entropy + part[1].asnumpy()
        return _result(loss, cross_entropy, *self._update(Tensor(loss)))


def _state_of(loss: Loss, optimizer: nn.Optimizer) -> list[Parameter]:
    there = {p.name: p for p in [*loss.get_parameters(), *optimizer.get_parameters()]}
    return [p for p in there.values() if p.ndim]  # scalars are a rate and columns of v that nobody reads


def _result(loss: np.ndarray, cross_entropy: np.ndarray, norm: Tensor, rate: Tensor, finite: Tensor) -> StepResult:
    numbers = (float(x) for x in (loss, cross_entropy, norm.asnumpy(), rate.asnumpy()))
    return StepResult(*numbers, skipped=not bool(finite.asnumpy()))

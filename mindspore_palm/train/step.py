"""One optimizer step as compiled graphs: loss, gradients, norm, clip, update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindspore_palm.model.loss import Loss
from mindspore_palm.optim import GlobalNorm, clip_factor, fused
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.context import partition
from mindspore_palm.parallel.top_cell import TopCell
from mindspore_palm.parallel.weights import zeros_like

BATCH_AXES = (("batch", "length"), ("batch", "length"), ())  # logical axes of inputs, targets and their count
SCALED = ("float16",)  # compute dtypes with a loss scale; their steps have it as an extra input, before the mask
DROPOUT_MASK_AXES = ("batch", "one", "embed")  # of an extra input, if there is one (MS-11: None cannot be partitioned)


@dataclass(frozen=True)
class StepResult:
    """Outcome of one step, as Python floats."""

    loss: float
    """Cross-entropy + z-loss, nats/token."""
    cross_entropy: float
    """Nats/token."""
    gradient_norm: float
    """Global norm before clipping."""
    learning_rate: float
    """0 for a skipped step."""
    skipped: bool
    """Whether the loss or a gradient was not finite, so that nothing was changed."""
    loss_scale: float | None = None
    """Factor of the loss in the backward pass; None for a compute dtype without one."""

    @property
    def loss_is_finite(self) -> bool:
        """Whether the forward pass went well, whatever the gradients."""
        return math.isfinite(self.loss)


def is_scaled() -> bool:
    """Whether steps of the current layout have a loss scale."""
    return current_layout().compute_dtype in SCALED


def make_update(optimizer: nn.Optimizer, clip_norm: float, scaled: bool = False) -> nn.Cell:
    """``Update``, or the C++ function in its place; arguments are those of ``Update``."""
    return fused.FusedUpdate(optimizer, clip_norm) if fused.usable(optimizer) else Update(optimizer, clip_norm, scaled)


class Update(nn.Cell):
    """Clips gradients and updates weights; changes nothing if the loss or a gradient is not finite.

    Args:
        optimizer: of the weights.
        clip_norm: global norm to which gradients are clipped; 0 for no clipping.
        scaled: whether gradients are those of the loss times a scale, an extra input.
    """

    def __init__(self, optimizer: nn.Optimizer, clip_norm: float, scaled: bool = False) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer, self.clip_norm = optimizer, clip_norm
        self.norm = GlobalNorm(optimizer.parameters)
        self.is_finite, self.both, self.mul = ops.IsFinite(), ops.LogicalAnd(), ops.Mul()
        self.scaled = scaled

    def construct(self, loss: Tensor, gradients: tuple[Tensor, ...], *scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns gradient norm, learning rate and whether the update was applied; ``scale`` is that of the loss."""
        norm = self.norm(gradients)
        if self.scaled:
            norm = norm / scale[0]
        finite = self.both(self.is_finite(norm), self.is_finite(loss))
        rate = Tensor(0.0, ms.float32)
        if finite:
            if self.clip_norm > 0 or self.scaled:
                factor = self.factor(norm, *scale)
                clipped = ()
                for gradient in gradients:
                    clipped += (self.mul(gradient, factor),)
                rate = self.optimizer(clipped)
            else:
                rate = self.optimizer(gradients)
        return norm, rate, finite

    def factor(self, norm: Tensor, *scale: Tensor) -> Tensor:
        """Factor of the gradients that clips them and takes the loss scale back out: float32 []."""
        clip = clip_factor(norm, self.clip_norm) if self.clip_norm > 0 else 1.0
        return clip / scale[0] if self.scaled else clip


class Objective(nn.Cell):
    """The function to differentiate: loss divided by the number of devices; returns loss and cross-entropy as well.

    Every device of a mesh computes the full loss, and the backward pass sums the gradients of all devices. Without the
    division, gradients would be too large by a factor of the number of devices (MS-04). In float16 the function is
    also multiplied by the loss scale, the first of ``extras``; a dropout mask follows.
    """

    def __init__(self, loss: Loss) -> None:
        super().__init__(auto_prefix=False)
        self.loss, self.devices, self.scales = loss, current_layout().devices, int(is_scaled())

    def construct(
        self, inputs: Tensor, targets: Tensor, count: Tensor, *extras: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss, cross_entropy = self.loss(inputs, targets, count, *extras[self.scales :])
        objective = loss * (1.0 / self.devices) if self.devices > 1 else loss
        if self.scales:
            objective = objective * extras[0]
        return objective, loss, cross_entropy


class SingleGraphStep(TopCell):
    """A step without gradient accumulation, as one graph."""

    def __init__(self, loss: Loss, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.objective, self.update = Objective(loss), update
        self.gradients = ops.value_and_grad(self.objective, None, update.optimizer.parameters, has_aux=True)
        self.scales = self.objective.scales

    def construct(self, inputs: Tensor, targets: Tensor, count: Tensor, *extras: Tensor) -> tuple[Tensor, ...]:
        (_, loss, cross_entropy), gradients = self.gradients(inputs, targets, count, *extras)
        norm, rate, finite = self.update(loss, gradients, *extras[: self.scales])
        return loss, cross_entropy, norm, rate, finite


class Accumulate(TopCell):
    """Adds the gradients of a micro-batch to ``sums``."""

    def __init__(self, loss: Loss, parameters: ParameterTuple, sums: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.objective, self.sums = Objective(loss), sums
        self.gradients = ops.value_and_grad(self.objective, None, parameters, has_aux=True)
        self.add, self.depend = ops.AssignAdd(), ops.Depend()

    def construct(self, inputs: Tensor, targets: Tensor, count: Tensor, *extras: Tensor) -> tuple[Tensor, Tensor]:
        (_, loss, cross_entropy), gradients = self.gradients(inputs, targets, count, *extras)
        added = ()
        for i in range(len(self.sums)):
            added += (self.add(self.sums[i], gradients[i]),)
        return self.depend(loss, added), cross_entropy


class UpdateFromSums(TopCell):
    """Updates weights from accumulated gradients, and resets those to zero."""

    def __init__(self, update: Update, sums: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.update, self.sums = update, sums
        self.zeros, self.assign, self.depend = ops.ZerosLike(), ops.Assign(), ops.Depend()

    def construct(self, loss: Tensor, *scale: Tensor) -> tuple[Tensor, ...]:
        gradients = ()
        for total in self.sums:
            gradients += (total + 0.0,)  # a copy: the sums are cleared below
        norm, rate, finite = self.update(loss, gradients, *scale)
        reset = ()
        for total in self.sums:
            reset += (self.assign(total, self.depend(self.zeros(total), norm)),)
        return self.depend(norm, reset), rate, finite


class TrainStep:
    """Optimizer steps, with gradient accumulation if ``micro_batch`` is set.

    Built for the current layout. On several devices all workers call it together, each with its own sequences.

    Args:
        loss: of the network.
        optimizer: of its weights.
        clip_norm: global norm to which gradients are clipped; 0 for no clipping.
        micro_batch: sequences of a micro-batch on each worker; 0 for no gradient accumulation.
        dropout: whether steps get a dropout mask.

    ``state`` is everything that a step changes: weights, optimizer moments and the number of updates.
    """

    def __init__(
        self, loss: Loss, optimizer: nn.Optimizer, clip_norm: float, micro_batch: int = 0, dropout: bool = False
    ) -> None:
        self.micro_batch = micro_batch
        self.state = state_of(loss, optimizer)
        self._scaled = is_scaled()
        scale_axes, mask_axes = ((),) * self._scaled, (DROPOUT_MASK_AXES,) * dropout
        update, batch = make_update(optimizer, clip_norm, self._scaled), (*BATCH_AXES, *scale_axes, *mask_axes)
        self._single = partition(SingleGraphStep(loss, update).set_train(), *batch)
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
        loss_scale: float = 1.0,
    ) -> StepResult:
        """Takes one step.

        Args:
            inputs: int32 [B, S], this worker's sequences, micro-batch by micro-batch.
            targets: int32 [B, S]; a negative target is no real token.
            tokens: real tokens of the batch on all workers; None counts those in ``targets``.
            dropout_mask: float32 [B, 1 + layers, D]; None for no dropout.
            loss_scale: factor of the loss in the backward pass, a power of two; only float16 has one.
        """
        if tokens is None:
            tokens = int((targets >= 0).sum())
        count = Tensor(np.float32(max(1, tokens)))
        scale = (Tensor(np.float32(loss_scale)),) if self._scaled else ()
        if not self.micro_batch or len(inputs) == self.micro_batch:
            mask = () if dropout_mask is None else (Tensor(dropout_mask),)
            loss, cross_entropy, *rest = self._single(Tensor(inputs), Tensor(targets), count, *scale, *mask)
            return self._result(loss.asnumpy(), cross_entropy.asnumpy(), rest, loss_scale)
        loss = cross_entropy = np.float32(0.0)
        for start in range(0, len(inputs), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            mask = () if dropout_mask is None else (Tensor(dropout_mask[rows]),)
            losses = self._accumulate(Tensor(inputs[rows]), Tensor(targets[rows]), count, *scale, *mask)
            loss, cross_entropy = loss + losses[0].asnumpy(), cross_entropy + losses[1].asnumpy()
        return self._result(loss, cross_entropy, self._update(Tensor(loss), *scale), loss_scale)

    def _result(
        self, loss: np.ndarray, cross_entropy: np.ndarray, rest: Sequence[Tensor], loss_scale: float
    ) -> StepResult:
        """``rest``: gradient norm, learning rate, and whether both loss and gradients are finite."""
        norm, rate, finite = (tensor.asnumpy() for tensor in rest)
        scale = loss_scale if self._scaled else None
        return StepResult(float(loss), float(cross_entropy), float(norm), float(rate), not bool(finite), scale)


def state_of(loss: Loss, *optimizers: nn.Optimizer) -> list[Parameter]:
    """Everything that a step changes: weights, moments and the number of updates, which optimizers share."""
    cells = loss, *reversed(optimizers)  # of what has the same name, the first optimizer's
    parameters = {p.name: p for cell in cells for p in cell.get_parameters()}
    return [p for p in parameters.values() if p.ndim]  # scalars are a learning rate and unused columns of v

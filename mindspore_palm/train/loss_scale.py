"""Dynamic loss scaling, with which float16 trains (arXiv 1710.03740, section 3.2).

Inside blocks, gradients have the compute dtype, and the loss is a mean over all tokens of the step: the more tokens,
the smaller the gradient of each. float16 rounds what is below 3e-8 to zero. So the loss is multiplied by a scale before
the backward pass, and the gradients of the weights, which are float32, are divided by it.

The scale is a power of two, so that neither changes a digit. It doubles after ``train.loss_scale_window`` steps without
overflow, and halves at each overflow. That step is skipped, as any step whose gradient is not finite. All workers see
the same global norm, and so agree on the scale. It is part of the progress of a run: resuming is exact.
"""

from __future__ import annotations

from mindspore_palm.checkpoint.progress import Progress
from mindspore_palm.config import TrainConfig
from mindspore_palm.train.step import StepResult

SMALLEST, LARGEST = 1.0, 2.0**40
"""Without a smallest scale, a network that diverged would be skipped forever. Up to the largest, all sums of squares
stay far inside float32."""


def current_scale(progress: Progress, settings: TrainConfig) -> float:
    """The scale of the next step."""
    return progress.loss_scale or settings.loss_scale


def overflowed(result: StepResult) -> bool:
    """Whether a step was skipped only because its scale was too large: a smaller one may help."""
    return result.skipped and result.loss_is_finite and (result.loss_scale or SMALLEST) > SMALLEST


def update_scale(progress: Progress, result: StepResult, settings: TrainConfig) -> None:
    """Sets the scale of the next step. A loss that is not finite does not change it: no scale was applied yet."""
    if result.loss_scale is None or (result.skipped and not overflowed(result)):
        return
    if result.skipped:
        progress.loss_scale, progress.scale_steps = max(SMALLEST, result.loss_scale / 2), 0
        return
    progress.loss_scale, progress.scale_steps = result.loss_scale, progress.scale_steps + 1
    if progress.scale_steps >= settings.loss_scale_window:
        progress.loss_scale, progress.scale_steps = min(LARGEST, 2 * result.loss_scale), 0

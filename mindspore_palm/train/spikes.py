"""PaLM's cure for loss spikes (section 5.1 of the paper): go back, leave out the batches around the spike, go on.

"We re-started training from a checkpoint roughly 100 steps before the spike started, and skipped roughly 200-500 data
batches, which cover the batches that were seen before and during the spike."

A step is an outlier when its loss is far above the median of the last steps, in units of their spread; or when the loss
is half as far and the gradient norm is far above its own median. Median and spread (median absolute deviation) hardly
move with a few wild values, and outliers do not enter them. Some outliers in a row are a spike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from mindspore_palm.checkpoint.progress import Progress, Rewind
from mindspore_palm.config import TrainConfig

LEAST = 16  # steps before which nothing is called unusual
SIGMA = 1.4826  # standard deviations in a median absolute deviation, for a normal distribution
LOSS_FLOOR, NORM_FLOOR = 0.01, 0.05  # spreads below which a deviation is not worth a name: nats, and of log(norm)


@dataclass(frozen=True)
class Spike:
    """Outliers in a row, of which the last one is the newest step."""

    first: int
    """The step of the first of them, counted from 1."""
    last: int
    """The newest."""
    loss: float
    """Of the newest."""
    usual: float
    """Median of the steps before."""

    def __str__(self) -> str:
        return f"the loss rose from {self.usual:.3f} to {self.loss:.3f} in steps {self.first} to {self.last}"


def watch(progress: Progress, loss: float, norm: float, settings: TrainConfig) -> Spike | None:
    """Takes the newest step into the statistics of ``progress``, and tells whether it completes a spike."""
    if settings.spikes == "off":
        return None
    log_norm = math.log(norm) if 0 < norm < math.inf else math.inf if norm != 0 else -math.inf
    if not is_outlier(progress, loss, log_norm, settings.spike_deviations):
        progress.outliers = 0
        if math.isfinite(loss) and math.isfinite(log_norm):
            progress.losses = [*progress.losses, loss][-settings.spike_window :]
            progress.norms = [*progress.norms, log_norm][-settings.spike_window :]
        return None
    progress.outliers += 1
    if progress.outliers < settings.spike_steps:
        return None
    return Spike(progress.step - progress.outliers + 1, progress.step, loss, median(progress.losses))


def is_outlier(progress: Progress, loss: float, log_norm: float, deviations: float) -> bool:
    """Whether a step is far above the last ones."""
    if len(progress.losses) < LEAST:
        return False
    if not (math.isfinite(loss) and math.isfinite(log_norm)):
        return True
    loss_off = deviation(loss, progress.losses, LOSS_FLOOR)
    return loss_off > deviations or (
        loss_off > deviations / 2 and deviation(log_norm, progress.norms, NORM_FLOOR) > deviations
    )


def deviation(value: float, before: Sequence[float], floor: float) -> float:
    """How far a value is above the median of others, in units of their robust standard deviation."""
    middle = median(before)
    spread = SIGMA * median(abs(x - middle) for x in before)
    return (value - middle) / max(spread, floor)


def tries(rewinds: Sequence[Rewind], spike: Spike, settings: TrainConfig) -> int:
    """How often the run has gone back for what must be the same spike: the last ones, near it or behind it."""
    count = 0
    for rewind in reversed(rewinds):
        if rewind.asked or spike.first > rewind.at + settings.spike_look_back:
            break
        count += 1
    return count


def batches_to_skip(settings: TrainConfig, tries: int, back: int) -> int:
    """From ``spike_skip`` at the first try, evenly up to ``spike_skip_most`` at the last.

    But at least those of the ``back`` steps that are undone, and ``spike_look_back`` more: what is left out covers the
    spike, which may not be over.
    """
    more = (settings.spike_skip_most - settings.spike_skip) * tries // max(1, settings.spike_tries - 1)
    return max(settings.spike_skip + more, back + settings.spike_look_back)


def step_to_go_back_to(steps: Sequence[int], spike: Spike, look_back: int) -> int:
    """Of the checkpoints there are, the newest that is ``look_back`` steps before the spike; else the oldest before it.

    0, the initial weights, where there is none.
    """
    before = [step for step in steps if step < spike.first]
    far_enough = [step for step in before if step <= spike.first - look_back]
    return max(far_enough, default=min(before, default=0))

"""PaLM's remedy for loss spikes (section 5.1 of the paper): go back, skip the batches around the spike, resume.

"We re-started training from a checkpoint roughly 100 steps before the spike started, and skipped roughly 200-500 data
batches, which cover the batches that were seen before and during the spike."

A step is an outlier if its loss is far above the median of the last steps, in units of their spread; or if its loss
is half as far above and its gradient norm is far above its own median. The spread is the median absolute deviation. A
few wild values hardly move median and spread, and outliers are not included. Several outliers in a row are a spike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from mindspore_palm.checkpoint.progress import Progress, Rewind
from mindspore_palm.config import TrainConfig

MIN_STEPS = 16  # steps before which none is an outlier
MAD_TO_SIGMA = 1.4826  # standard deviations per median absolute deviation, for a normal distribution
LOSS_FLOOR, NORM_FLOOR = 0.01, 0.05  # smallest spreads that are used: in nats, and of log(norm)


@dataclass(frozen=True)
class Spike:
    """Outliers in a row, the last of which is the newest step."""

    first: int
    """Step of the first outlier, counted from 1."""
    last: int
    """The newest step."""
    loss: float
    """Of the newest step."""
    median: float
    """Median loss of the steps before."""

    def __str__(self) -> str:
        return f"the loss rose from {self.median:.3f} to {self.loss:.3f} in steps {self.first} to {self.last}"


def detect_spike(progress: Progress, loss: float, norm: float, settings: TrainConfig) -> Spike | None:
    """Updates the statistics of ``progress`` with the newest step; returns the spike if that step completes one.

    Args:
        progress: of the run, after the step.
        loss: of the step, nats/token.
        norm: its gradient norm.
        settings: for spikes.
    """
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


def is_outlier(progress: Progress, loss: float, log_norm: float, threshold: float) -> bool:
    """Whether a step is far above the last ones.

    Args:
        progress: has their statistics.
        loss: of the step, nats/token.
        log_norm: logarithm of its gradient norm.
        threshold: in robust standard deviations.
    """
    if len(progress.losses) < MIN_STEPS:
        return False
    if not (math.isfinite(loss) and math.isfinite(log_norm)):
        return True
    loss_deviation = deviation(loss, progress.losses, LOSS_FLOOR)
    return loss_deviation > threshold or (
        loss_deviation > threshold / 2 and deviation(log_norm, progress.norms, NORM_FLOOR) > threshold
    )


def deviation(value: float, history: Sequence[float], floor: float) -> float:
    """Distance of a value above the median of others, in units of their robust standard deviation."""
    middle = median(history)
    spread = MAD_TO_SIGMA * median(abs(x - middle) for x in history)
    return (value - middle) / max(spread, floor)


def count_tries(rewinds: Sequence[Rewind], spike: Spike, settings: TrainConfig) -> int:
    """Number of times that the run went back for the same spike: its last rewinds, near the spike or after it."""
    count = 0
    for rewind in reversed(rewinds):
        if rewind.asked or spike.first > rewind.at + settings.spike_look_back:
            break
        count += 1
    return count


def batches_to_skip(settings: TrainConfig, tries: int, back: int) -> int:
    """Number of batches to skip, from ``spike_skip`` at the first try evenly up to ``spike_skip_most`` at the last.

    It is at least ``back + spike_look_back``: the skipped batches cover the spike, which may not be over.

    Args:
        settings: for spikes.
        tries: times that the run went back for this spike before.
        back: steps that are undone.
    """
    more = (settings.spike_skip_most - settings.spike_skip) * tries // max(1, settings.spike_tries - 1)
    return max(settings.spike_skip + more, back + settings.spike_look_back)


def rewind_target(steps: Sequence[int], spike: Spike, look_back: int) -> int:
    """Step of the checkpoint to go back to: the newest that is ``look_back`` steps before the spike.

    If there is none, the oldest before the spike; if there is none either, 0, the initial weights.
    """
    before = [step for step in steps if step < spike.first]
    far_enough = [step for step in before if step <= spike.first - look_back]
    return max(far_enough, default=min(before, default=0))

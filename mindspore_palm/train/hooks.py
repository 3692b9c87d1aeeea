"""Hooks: what happens after each step. ``run_steps`` registers them in the order in which they are called."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mindspore_palm.console import Bar, say
from mindspore_palm.launch import stop
from mindspore_palm.train.divergence import check_not_diverged
from mindspore_palm.train.log.metrics import MetricsRow
from mindspore_palm.train.loss_scale import overflowed
from mindspore_palm.train.run import Run
from mindspore_palm.train.spikes import Spike, detect_spike
from mindspore_palm.train.step import StepResult


@dataclass
class StepInfo:
    """A step that was taken, as hooks see it."""

    step: int
    """Counts from 1."""
    result: StepResult
    row: MetricsRow
    """Its row of metrics.csv, to which ``evaluate`` adds the held-out loss."""
    start: float = 0.0
    """When the step began to read its batch, by ``time.perf_counter``."""
    read: float = 0.0
    """When the batch was read."""
    end: float = 0.0
    """When the results were there."""
    spike: Spike | None = None
    """The loss spike that this step completes, from ``watch_for_spikes``."""
    stopped: bool = False
    """Whether a worker was asked to stop, from ``poll_workers`` and ``evaluate``; the same on all workers."""

    @property
    def is_final(self) -> bool:
        """Whether no other step follows before the run stops or goes back."""
        return self.stopped or self.spike is not None


Hook = Callable[[Run, StepInfo], None]


def is_due(step: int, last: int, every: int, at_end: bool = True) -> bool:
    """Whether something happens after a step.

    Args:
        step: counts from 1; nothing is due at 0.
        last: step of the run.
        every: steps between two times; 0 for never.
        at_end: whether it happens after the last step, regardless of ``every``.
    """
    return at_end if step == last else bool(step and every and step % every == 0)


class Hooks:
    """Hooks of a run; calls those that are due after a step, in the order in which they were added."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._hooks: list[tuple[Hook, int, bool]] = []

    def add(self, hook: Hook, every: int = 1, at_end: bool = True) -> None:
        """Adds a hook; ``every`` and ``at_end`` are as for ``is_due``."""
        self._hooks.append((hook, every, at_end))

    def __call__(self, info: StepInfo) -> None:
        for hook, every, at_end in self._hooks:
            if is_due(info.step, self._run.settings.train.steps, every, at_end):
                hook(self._run, info)


def watch_for_spikes(run: Run, info: StepInfo) -> None:
    """Updates the statistics of losses, and notes a spike. A gradient that overflowed says nothing about the loss."""
    if overflowed(info.result):
        return
    info.spike = detect_spike(run.progress, info.result.loss, info.result.gradient_norm, run.settings.train)


def poll_workers(run: Run, info: StepInfo) -> None:
    """Asks all workers whether they were asked to stop, and advances the pending checkpoint.

    The only collective of a step outside the network: a later request to stop takes effect one step later.
    """
    info.stopped = run.manager.poll(stop.requested()) > 0


def evaluate(run: Run, info: StepInfo) -> None:
    """Measures the held-out loss, and logs it except after the last step, where ``finish`` does."""
    evaluation = run.evaluate()
    if evaluation is None:
        info.stopped = True
        return
    info.row.validation_loss = evaluation.nats_per_token
    info.row.validation_bits_per_byte = evaluation.bits_per_byte
    if info.step < run.settings.train.steps:
        say(
            f"step {info.step}: held out {evaluation.nats_per_token:.4f} nats/token, "
            f"{evaluation.bits_per_byte:.4f} bits/byte"
        )


def evaluate_last_row(run: Run) -> bool:
    """Measures the held-out loss that the last row lacks if the run was stopped while measuring it.

    Called before the first step. All workers call it together.

    Returns:
        Whether training continues; False if a worker was asked to stop again.
    """
    train, recorder = run.settings.train, run.recorder
    owed = recorder and recorder.lacks_evaluation() and is_due(run.progress.step, train.steps, train.eval_every)
    if not run.votes.broadcast(int(bool(owed))):
        return True
    evaluation = run.evaluate()
    if evaluation and recorder:
        recorder.amend(evaluation.nats_per_token, evaluation.bits_per_byte)
    return evaluation is not None


def record(run: Run, info: StepInfo) -> None:
    """Writes the step to metrics.csv and TensorBoard."""
    if run.recorder:
        run.recorder.add(info.row)


def report_clock_jump(run: Run, info: StepInfo) -> None:
    """Logs that the system's clock was set."""
    if run.recorder and (jump := run.recorder.clock.jump()):
        say(
            f"step {info.step}: the system's clock was set by {jump:+,.0f} s, or the machine slept; durations and "
            "TensorBoard's times come from a steady clock, and are not affected"
        )


class ChartDrawer:
    """Draws loss.png every so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._drawn = seconds, time.monotonic()

    def __call__(self, run: Run, info: StepInfo) -> None:
        if run.recorder and time.monotonic() - self._drawn > self._seconds:
            run.recorder.draw()
            self._drawn = time.monotonic()


def check_divergence(run: Run, info: StepInfo) -> None:
    """Logs a skipped step, and ends a run that no longer learns.

    Raises:
        UserError: too many steps in a row were skipped, none of them for its loss scale alone.
    """
    if overflowed(info.result):
        scale, smaller = info.result.loss_scale, run.progress.loss_scale
        say(f"step {info.step}: a gradient overflowed at loss scale {scale:g}; skipped, the next one takes {smaller:g}")
        return
    if info.result.skipped:
        say(f"step {info.step}: loss {info.result.loss} with gradient norm {info.result.gradient_norm}; skipped")
        check_not_diverged(run.progress, run.settings)


class ProgressHook:
    """Advances the progress bar."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def __call__(self, run: Run, info: StepInfo) -> None:
        result, row = info.result, info.row
        scale = "" if result.loss_scale is None else f", scale {result.loss_scale:g}"
        hfu = "" if run.settings.parallel.recompute == "none" else f", HFU {row.hfu:.1%}"
        self._bar.advance(
            f"loss {result.loss:.3f}, lr {result.learning_rate:.2g}, norm {result.gradient_norm:.2f}, "
            f"{row.tokens_per_second:,.0f} tok/s, MFU {row.mfu:.1%}{hfu}{scale}"
        )


def save_checkpoint(run: Run, info: StepInfo) -> None:
    """Starts writing a checkpoint, unless the run stops or goes back after this step."""
    if info.is_final:
        return
    if info.result.skipped and not overflowed(info.result):  # no later step may be able to fix these weights
        say(f"step {info.step}: no checkpoint, as the loss or a gradient is not finite")
    else:
        run.save()

"""Dynamic loss scaling: the rule by which the scale moves, and what an overflow does to a step and to a run."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mindspore_palm.checkpoint.progress import Progress
from mindspore_palm.config import TrainConfig
from mindspore_palm.train.loss_scale import LARGEST, current_scale, overflowed, update_scale
from mindspore_palm.train.step import StepResult

GOOD, OVERFLOW, BAD_LOSS = (1.0, 1.0), (1.0, math.inf), (math.nan, math.nan)


def scales(settings: TrainConfig, *steps: tuple[float, float]) -> list[float]:
    """The scale of each step and of the one after them, for steps with these losses and gradient norms."""
    progress, taken = Progress(), []
    for loss, norm in steps:
        taken.append(current_scale(progress, settings))
        skipped = not (math.isfinite(loss) and math.isfinite(norm))
        update_scale(progress, StepResult(loss, loss, norm, 0.01, skipped, taken[-1]), settings)
    return [*taken, current_scale(progress, settings)]


def test_an_overflow_halves_the_scale_and_a_window_without_one_doubles_it():
    settings = TrainConfig(loss_scale=1024.0, loss_scale_window=3)
    assert scales(settings, GOOD, GOOD, GOOD, GOOD) == [1024, 1024, 1024, 2048, 2048]
    assert scales(settings, GOOD, GOOD, OVERFLOW, GOOD, GOOD, GOOD) == [1024, 1024, 1024, 512, 512, 512, 1024]
    assert scales(settings, OVERFLOW, OVERFLOW) == [1024, 512, 256]


def test_a_loss_that_is_not_finite_leaves_the_scale_alone():
    settings = TrainConfig(loss_scale=1024.0, loss_scale_window=2)
    assert scales(settings, BAD_LOSS, GOOD, BAD_LOSS, GOOD) == [1024, 1024, 1024, 1024, 2048]


def test_the_scale_stays_between_its_limits():
    settings = TrainConfig(loss_scale=LARGEST, loss_scale_window=1)
    assert scales(settings, GOOD) == [LARGEST, LARGEST]
    assert scales(TrainConfig(loss_scale=2.0), OVERFLOW, OVERFLOW, OVERFLOW) == [2, 1, 1, 1]


def test_at_the_smallest_scale_a_gradient_that_is_not_finite_counts_against_the_run():
    assert overflowed(StepResult(1.0, 1.0, math.inf, 0.0, True, 2.0))
    assert not overflowed(StepResult(1.0, 1.0, math.inf, 0.0, True, 1.0))
    assert not overflowed(StepResult(1.0, 1.0, math.inf, 0.0, True, None))  # another dtype


@pytest.mark.parametrize("value", ["3", "0.5", "1e13"])
def test_a_first_scale_that_is_no_power_of_two_is_refused(value):
    from mindspore_palm.errors import UserError
    from mindspore_palm.settings import load_settings

    with pytest.raises(UserError, match=r"train\.loss_scale = "):
        load_settings(None, [f"train.loss_scale={value}"])


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_a_step_that_overflows_changes_nothing_and_a_smaller_scale_helps(device, rng, micro_batch):
    from unit.test_step import state_of, trainer

    from mindspore_palm.parallel.axes import Layout, layout

    inputs, targets = rng.integers(0, 32, (2, 4, 8)).astype(np.int32)
    with layout(Layout(compute_dtype="float16")):
        _, optimizer, step = trainer("adafactor", micro_batch)
        before = state_of(optimizer)
        result = step(inputs, targets, loss_scale=2.0**40)
        assert overflowed(result) and result.learning_rate == 0 and np.isfinite(result.loss)
        for a, b in zip(before, state_of(optimizer), strict=True):
            np.testing.assert_array_equal(a, b)
        result = step(inputs, targets, loss_scale=2.0**12)
    assert not result.skipped and result.loss_scale == 2.0**12 and 0 < result.gradient_norm < 100
    assert int(optimizer.global_step.asnumpy()[0]) == 1

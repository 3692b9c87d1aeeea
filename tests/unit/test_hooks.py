"""Hooks of the training loop: called when they are due, in the order in which they were added."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mindspore_palm.config import Settings
from mindspore_palm.train.hooks import Hooks, StepInfo, is_due

STEPS = 7


@pytest.mark.parametrize(
    ("every", "at_end", "due"),
    [
        (1, True, [1, 2, 3, 4, 5, 6, 7]),
        (3, True, [3, 6, 7]),
        (3, False, [3, 6]),
        (7, False, []),  # at_end decides about the last step
        (0, True, [7]),
        (0, False, []),
    ],
)
def test_when_a_hook_is_due(every, at_end, due):
    assert [step for step in range(STEPS + 1) if is_due(step, STEPS, every, at_end)] == due


def test_hooks_are_called_in_order_and_see_what_earlier_ones_noted():
    run = SimpleNamespace(settings=Settings.model_validate({"train": {"steps": STEPS}}))
    hooks, calls = Hooks(run), []

    def stop_at_five(run, info):
        info.stopped = info.step == 5

    hooks.add(stop_at_five)
    hooks.add(lambda run, info: calls.append((info.step, "evaluate", info.is_final)), every=5)
    hooks.add(lambda run, info: calls.append((info.step, "save", info.is_final)), every=5, at_end=False)
    for step in range(1, STEPS + 1):
        hooks(StepInfo(step, result=None, row=None))
    assert calls == [(5, "evaluate", True), (5, "save", True), (7, "evaluate", False)]

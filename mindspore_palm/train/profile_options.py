"""The steps that ``--profile FROM:TO`` asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import METRICS

MOST_STEPS = 100  # of a profile, which is kept in memory
EXAMPLE = f"write FROM:TO, for example 5:8 for the steps 5 to 8 of {METRICS}"

Planner = Callable[[Settings, float], tuple[Mapping[str, float], str]]
"""Predicts seconds of a step by kind, and names the machine in words, from settings and a device's peak FLOP/s."""


@dataclass(frozen=True)
class ProfileOptions:
    """Steps to profile."""

    first: int
    """As in metrics.csv, from 1."""
    last: int
    """The last one; it is profiled, too."""
    planner: Planner | None = None
    """Predicts the step, to print beside what was measured."""

    @property
    def argument(self) -> str:
        """As the user has written it."""
        return f"--profile {self.first}:{self.last}"


def parse_profile(text: str) -> ProfileOptions:
    """The steps of ``--profile``.

    Raises:
        UserError: they are no range.
    """
    match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", text)
    first, last = (int(number) for number in match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile {text}: {EXAMPLE}")
    return ProfileOptions(first, last)


def check_profile(options: ProfileOptions, resumes_from: int, steps: int, device: str) -> None:
    """Checks that the steps to profile will be taken.

    Args:
        options: the steps.
        resumes_from: the step that the run resumes from; 0 for a new run.
        steps: of the run.
        device: CPU, GPU or Ascend.

    Raises:
        UserError: says which steps can be profiled.
    """
    asked, least = options.argument, resumes_from + 2
    if device != "CPU":
        raise UserError(
            f"{asked}: on {device}, a profile is not supported, only on CPU; leave --profile out, or set "
            "train.device=CPU"
        )
    if options.last > steps:
        raise UserError(f"{asked}: the run ends with step {steps:,}; {EXAMPLE}, or set train.steps higher")
    if options.first < least:
        start = f"the run resumes from step {resumes_from:,}, and " if resumes_from else ""
        raise UserError(
            f"{asked}: {start}step {least - 1:,} is the first, which also compiles its graphs; profile from step "
            f"{least:,} on"
        )
    if options.last - options.first >= MOST_STEPS:
        raise UserError(f"{asked}: profile at most {MOST_STEPS} steps at a time; a few show where the time goes")

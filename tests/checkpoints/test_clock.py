"""A clock that jumps is logged, and changes nothing but file timestamps."""

from __future__ import annotations

import csv
import re
from itertools import pairwise
from pathlib import Path

import pytest
from checkpoints.command import run, same_bits, write_text
from event_files import events

STEPS = 12
OPTIONS = [f"train.steps={STEPS}", "train.eval_every=0", "train.checkpoint_every=3"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("clock"))


def test_a_clock_that_jumps(home):
    out = run(home, "jumped", *OPTIONS, script=Path(__file__).with_name("jumping_clock.py"))
    jumps = re.findall(r"step (\d+): the system's clock was set by ([-+0-9,]+) s", out)
    assert jumps == [("5", "-86,400"), ("9", "+90,000")]
    run(home, "straight", *OPTIONS)
    assert not same_bits(home / "jumped", home / "straight")
    with open(home / "jumped" / "metrics.csv", newline="", encoding="utf-8") as file:
        assert all(0 < float(row["seconds"]) < 60 for row in csv.DictReader(file))
    times = [event.wall_time for event in events(home / "jumped") if event.step]
    assert len(times) == STEPS and all(0 <= late - early < 60 for early, late in pairwise(times))

"""run/train.py on a machine whose clock goes back by a day after 5 steps, and a day and an hour ahead after 9."""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mindspore_palm.train.log.recorder import Recorder  # noqa: E402 - found by the path above

JUMPS = {5: -86_400, 9: 90_000}
real, add, offset = time.time, Recorder.add, 0


def add_and_jump(recorder, row):
    global offset
    add(recorder, row)
    offset += JUMPS.get(row.step, 0)


time.time, Recorder.add = lambda: real() + offset, add_and_jump
sys.argv[0] = str(ROOT / "run" / "train.py")
runpy.run_path(sys.argv[0], run_name="__main__")

"""run/train.py that is asked to stop at its second step: ``two_steps.py ARGUMENTS``. Its workers run this, too."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = 2


def stopping(make_row):
    """The function that makes a row of each step, which asks for the end after a few of them."""
    rows = []

    def counted(*arguments, **named):
        rows.append(None)
        if len(rows) == STEPS:
            os.kill(os.getpid(), signal.SIGTERM)
        return make_row(*arguments, **named)

    return counted


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("run_train", ROOT / "run" / "train.py")
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    from mindspore_palm.errors import run_command
    from mindspore_palm.train import loop

    loop.MetricsRow = stopping(loop.MetricsRow)
    sys.exit(run_command(command.main))

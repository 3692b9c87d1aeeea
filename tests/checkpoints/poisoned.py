"""run/train.py with some batches poisoned: their tokens are random. POISON=FROM:TO."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mindspore_palm.data import Batches  # noqa: E402 - found by the path above
from mindspore_palm.data.tokens import shift  # noqa: E402 - found by the path above
from mindspore_palm.errors import run_command  # noqa: E402 - found by the path above

BATCH = 8


def poison(first: int, last: int) -> None:
    """Poisons the sequences of batches ``first`` up to ``last``, whatever step trains on them."""
    healthy = Batches.slice

    def slice(self, step, start, count):
        inputs, targets = healthy(self, step, start, count)
        for row in range(count):
            sequence = self._position_of(self.sequences_before(step) + start + row)
            if BATCH * first <= sequence < BATCH * last:
                targets[row] = np.random.default_rng(sequence).integers(0, 512, targets.shape[1])
                inputs[row] = shift(targets[row : row + 1], self.eod)[0]
        return inputs, targets

    Batches.slice = slice


if __name__ == "__main__":
    poison(*map(int, os.environ["POISON"].split(":")))
    spec = importlib.util.spec_from_file_location("run_train", ROOT / "run" / "train.py")
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    sys.exit(run_command(command.main))

"""What saving costs: how long a checkpoint holds training up, in the background and at once.

    python benchmarks/checkpoint.py [--shapes 0,1,2] [--rounds 7] [--steps 10] [--every 100]

One process trains; runs of a few steps without saving, with one checkpoint in the background, and with one that waits
for the disk take turns. Printed are medians over the rounds: the step; how long the call that begins the checkpoint
takes; and what the run of steps took longer than the one without, all included: the copy, and the steps that a writer
beside them slows down. In percent of training with a checkpoint every ``--every`` steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from train_step import SHAPES, model_config, tokens  # noqa: E402 - found by the path above
from turns import WARM_UP  # noqa: E402

KINDS = {"without": None, "background": True, "at once": False}


def measure(shape, rounds, steps):
    """Seconds of each kind of run of steps, of the call that saves, and the bytes of a checkpoint."""
    from mindspore_palm.checkpoint.manager import CheckpointManager
    from mindspore_palm.config import Settings
    from mindspore_palm.parallel.context import open_device
    from mindspore_palm.parallel.votes import Votes
    from mindspore_palm.train.build import build_step

    open_device("CPU")
    model = model_config(shape).model_dump()
    settings = {}
    for kind in KINDS.values():
        train = {"checkpoint_in_background": bool(kind), "keep_last": 1}
        settings[kind] = Settings.model_validate({"model": model, "train": train})
    _, step = build_step(settings[None])
    inputs, targets = tokens(shape)
    for _ in range(WARM_UP):
        step(inputs, targets)
    seconds, calls = {name: [] for name in KINDS}, {name: [] for name in KINDS}
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on a disk, not in memory
        number = 0
        for _ in range(rounds):
            for name, kind in KINDS.items():
                manager = CheckpointManager(Path(folder), step.state, settings[kind], b"", Votes(), lambda: None)
                number += 1
                start = time.perf_counter()
                if kind is not None:
                    manager.save(number, {})
                calls[name].append(time.perf_counter() - start)
                for _ in range(steps):
                    step(inputs, targets)
                    manager.poll()
                seconds[name].append(time.perf_counter() - start)
                assert manager.finish(), manager.problem
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
    return seconds, calls, size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--every", type=int, default=100)
    arguments = parser.parse_args()
    print("d_model, layers, heads, head_dim, vocab, length, batch")
    for number in map(int, arguments.shapes.split(",")):
        seconds, calls, size = measure(SHAPES[number], arguments.rounds, arguments.steps)
        step = statistics.median(seconds["without"]) / arguments.steps
        sizes = ", ".join(map(str, SHAPES[number]))
        print(f"{sizes}: step {1e3 * step:.1f} ms, checkpoint {size / 1e6:.1f} MB", end="")
        for name in ("background", "at once"):
            longer = [s - w for s, w in zip(seconds[name], seconds["without"], strict=True)]
            stall = statistics.median(longer)
            print(
                f"; {name}: call {1e3 * statistics.median(calls[name]):.1f} ms, training stalls {1e3 * stall:.1f} ms, "
                f"{stall / (arguments.every * step):.2%}",
                end="",
            )
        print(flush=True)


if __name__ == "__main__":
    main()

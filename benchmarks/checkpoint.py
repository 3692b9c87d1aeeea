"""Cost of saving: how long a checkpoint stalls training, in the background and synchronously.

    python benchmarks/checkpoint.py [--shapes 0,1,2] [--rounds 7] [--steps 10] [--every 100]

One process trains. Runs of a few steps alternate between no checkpoint, one in the background, and one that waits for
the disk. The output has medians over the rounds: time of a step, time of the call that starts the checkpoint, and the
stall, which is the extra time of the run over the one without a checkpoint. The stall includes the copy and the steps
that a writer in the background slows down. It is also given in percent of training with a checkpoint every ``--every``
steps.
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

MODES = {"without": None, "background": True, "at once": False}


def measure(shape, rounds, steps):
    """Seconds of the runs and of the calls that save, by mode, and bytes of a checkpoint."""
    from mindspore_palm.checkpoint.manager import CheckpointManager
    from mindspore_palm.config import Settings
    from mindspore_palm.parallel.context import open_device
    from mindspore_palm.parallel.votes import Votes
    from mindspore_palm.train.build import build_step

    open_device("CPU")
    model = model_config(shape).model_dump()
    settings = {}
    for mode in MODES.values():
        train = {"checkpoint_in_background": bool(mode), "keep_last": 1}
        settings[mode] = Settings.model_validate({"model": model, "train": train})
    _, step = build_step(settings[None])
    inputs, targets = tokens(shape)
    for _ in range(WARM_UP):
        step(inputs, targets)
    seconds, calls = {name: [] for name in MODES}, {name: [] for name in MODES}
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on a disk, not in memory
        number = 0
        for _ in range(rounds):
            for name, mode in MODES.items():
                manager = CheckpointManager(Path(folder), step.state, settings[mode], b"", Votes(), lambda: None)
                number += 1
                start = time.perf_counter()
                if mode is not None:
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
            extra = [s - w for s, w in zip(seconds[name], seconds["without"], strict=True)]
            stall = statistics.median(extra)
            print(
                f"; {name}: call {1e3 * statistics.median(calls[name]):.1f} ms, training stalls {1e3 * stall:.1f} ms, "
                f"{stall / (arguments.every * step):.2%}",
                end="",
            )
        print(flush=True)


if __name__ == "__main__":
    main()

"""Times of single ops from MindSpore's profiler on a CPU, and which part of a step each op belongs to.

The profiler writes a line per op: its full name, its type, and start, duration and thread of each run. The full name
is the path of Cells in which the op stands, which tells its part. The graph of a cache has no such paths, so a profiled
process compiles its graphs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

FILE = "cpu_op_execute_timestamp_*.txt"
TYPE = re.compile(r"-op\d+$")
COLLECTIVE = re.compile(r"All(Reduce|Gather|ToAll)|ReduceScatter|Broadcast$|^_?Mirror|Send$|Receive$")
MATMULS = ("MatMul", "BatchMatMul")

OPTIMIZER, UPDATE = "optimizer", "gradient norm and clipping"
UNNAMED = "ops without a Cell"
COLLECTIVES = "collectives"

PARTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (part, re.compile(pattern))
    for part, pattern in (
        (OPTIMIZER, r"/optimizer-"),
        (UPDATE, r"/update-"),
        ("embedding", r"/embed-"),
        ("logits", r"/unembed-"),
        # the compiler expands the gradient of Softmax, which only attention has
        ("attention", r"/attention-|^Expand/_Softmax"),
        ("mlp", r"/(swiglu|activation|mlp)-"),
        ("projections", r"/(project_\w+|matmul)-"),
        ("norms", r"/(\w*norm)-"),
        ("rest of the blocks", r"/blocks-"),
        ("loss", r"/loss-"),
    )
)
"""Parts of a step by the Cells in an op's name; the first that fits. q and the mlp's input are one matmul in PaLM's
parallel block, and so are o and the mlp's output: they are "projections"."""
NETWORK = ("embedding", "norms", "projections", "attention", "mlp", "rest of the blocks", "logits", "loss")
"""Parts that have a forward and a backward pass."""
ALL_PARTS = (*NETWORK, UPDATE, OPTIMIZER, COLLECTIVES, UNNAMED)


@dataclass(frozen=True)
class OpRun:
    """One run of an op."""

    name: str
    """Path of Cells, and the op."""
    start: float
    """Seconds since 1970."""
    seconds: float
    thread: int = 0

    @property
    def end(self) -> float:
        return self.start + self.seconds

    @property
    def type(self) -> str:
        """Type of the op, such as MatMul."""
        return TYPE.sub("", self.name.rpartition("/")[2])

    @property
    def part(self) -> str:
        """Part of the step, one of ``ALL_PARTS``."""
        if COLLECTIVE.search(self.type):
            return COLLECTIVES
        return next((part for part, pattern in PARTS if pattern.search(self.name)), UNNAMED)


def in_backward(runs: Iterable[OpRun]) -> list[bool]:
    """Whether each op run of a step belongs to a backward pass; the runs come in the order of their starts.

    Gradients have a name that says so, or come from an op that the compiler has expanded. Of a recomputed Cell, all ops
    have the same prefix: those that run after the logits are recomputed.
    """
    result, after_logits = [], False
    for run in runs:
        forward = run.name.startswith("Default/")
        if forward and run.part == "embedding":
            after_logits = False
        if forward and run.part == "logits" and run.type in MATMULS:
            after_logits = True
        recomputed = run.name.startswith("recompute_") and after_logits
        result.append(recomputed or run.name.startswith(("Gradients/", "Expand/_SoftmaxBackward")))
    return result


def read_op_times(folder: Path) -> list[OpRun]:
    """The op runs that the profiler has written somewhere below a folder, first to last.

    Raises:
        ValueError: there are none.
    """
    runs = [run for file in sorted(folder.rglob(FILE)) for run in _runs(file.read_text(encoding="utf-8").splitlines())]
    if not runs:
        raise ValueError("MindSpore's profiler has written no times of ops")
    return sorted(runs, key=lambda run: run.start)


def _runs(lines: Iterable[str]) -> Iterator[OpRun]:
    for line in lines:
        name, _, times = line.partition(";")
        for time in times.rpartition(";")[2].split():
            start, milliseconds, thread = time.split(",")
            yield OpRun(name, int(start) / 1e9, float(milliseconds) / 1e3, int(thread))


def busy_seconds(runs: Iterable[OpRun]) -> float:
    """Time in which at least one op runs; runs come in the order of their starts."""
    busy, end = 0.0, 0.0
    for run in runs:
        busy += max(0.0, run.end - max(run.start, end))
        end = max(end, run.end)
    return busy

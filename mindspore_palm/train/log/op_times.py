"""Times of single ops from MindSpore's profiler on a CPU, and which part of a step each op belongs to.

The profiler writes a line per op: its full name, its type, and start, duration and thread of each run. Another file has
the shapes of the inputs, a line per run in the order of their starts.

In the forward pass, the full name is the path of Cells in which the op stands, which tells its part. In the backward
pass it is not: MindSpore differentiates an op once, and all its uses share the path of one. So the part of a gradient
comes from its type and shapes: batched matmuls are of attention, and what has the size of the vocabulary is of the
logits or the loss. A block in C++ is one op; its gradient has no path, and neither has the update of all weights, whose
first input is the loss. The graph of a cache has no paths at all, so a profiled process compiles its graphs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

TIMES, SHAPES = "cpu_op_execute_timestamp_*.txt", "cpu_framework_*.txt"
TYPE = re.compile(r"-op\d+$")
COLLECTIVE = re.compile(r"All(Reduce|Gather|ToAll)|ReduceScatter|Broadcast$|^_?Mirror|Send$|Receive$")
MATMULS = ("MatMul", "BatchMatMul")
CPP = "Custom"  # type of an op in C++
SHAPE = re.compile(r"input_\d+:\[([\d, ]*)\]")

OPTIMIZER, UPDATE = "optimizer", "gradient norm and clipping"
UNNAMED = "ops without a Cell"
BLOCKS, UNEMBED = "blocks, in C++", "logits and loss, in C++"
COLLECTIVES = "collectives"

PARTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (part, re.compile(pattern))
    for part, pattern in (
        (BLOCKS, r"/\d+-FusedBlock/compute-"),
        (UNEMBED, r"-FusedUnembedLoss/compute-"),
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
"""Parts of a step by the Cells in an op's name; the first that fits. q and the mlp's input are one Cell in PaLM's
parallel block, and so are o and the mlp's output: they are "projections"."""
GRADIENTS = "gradients of elementwise ops"
NETWORK = (
    "embedding",
    "norms",
    "projections",
    "attention",
    "mlp",
    "rest of the blocks",
    BLOCKS,
    "logits",
    "loss",
    UNEMBED,
    GRADIENTS,
)
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
    shapes: tuple[tuple[int, ...], ...] = ()
    """Of the inputs that are tensors."""

    @property
    def end(self) -> float:
        return self.start + self.seconds

    @property
    def type(self) -> str:
        """Type of the op, such as MatMul."""
        return TYPE.sub("", self.name.rpartition("/")[2])

    @property
    def cell(self) -> str:
        """Part of the step by the Cells in the op's name; of a gradient, those of another op of its type."""
        if COLLECTIVE.search(self.type):
            return COLLECTIVES
        if self.type == CPP and self.name.count("/") == 1:
            return BLOCKS if self.is_gradient else OPTIMIZER
        return next((part for part, pattern in PARTS if pattern.search(self.name)), UNNAMED)

    @property
    def is_gradient(self) -> bool:
        """Whether it is a gradient, by its name; in C++ by its inputs: that of the loss begins with targets."""
        if self.type == CPP:
            first = self.shapes[0] if self.shapes else ()
            return len(first) == 1 or (len(first) > 1 and self.name.count("/") == 1)
        return self.name.startswith(("Gradients/", "Expand/_SoftmaxBackward"))

    def part(self, vocab: int) -> str:
        """Part of the step, one of ``ALL_PARTS``.

        Args:
            vocab: rows of the embedding on this device, which tell gradients of logits and loss.
        """
        if not self.is_gradient or self.type == CPP or self.cell in ("embedding", COLLECTIVES):
            return self.cell
        if self.type == "BatchMatMul" or self.name.startswith("Expand/"):
            return "attention"
        if any(vocab in shape for shape in self.shapes):
            return "logits" if self.type in MATMULS else "loss"
        return "projections" if self.type in MATMULS else GRADIENTS


def in_backward(runs: Iterable[OpRun]) -> list[bool]:
    """Whether each op run of a step belongs to a backward pass; the runs come in the order of their starts.

    Gradients have a name that says so, or come from an op that the compiler has expanded. Of a recomputed Cell, all ops
    have the same prefix: those that run after the logits are recomputed.
    """
    result, after_logits = [], False
    for run in runs:
        forward = run.name.startswith("Default/")
        if forward and run.cell == "embedding":
            after_logits = False
        if forward and run.cell == "logits" and run.type in MATMULS:
            after_logits = True
        recomputed = run.name.startswith("recompute_") and after_logits
        result.append(recomputed or run.is_gradient)
    return result


def read_op_times(folder: Path) -> list[OpRun]:
    """The op runs that the profiler has written somewhere below a folder, first to last.

    Raises:
        ValueError: there are none, or their shapes are those of other ops.
    """
    runs = sorted(_runs(_lines(folder, TIMES)), key=lambda run: run.start)
    shapes = [line.split(";") for line in _lines(folder, SHAPES)]
    if not runs:
        raise ValueError("MindSpore's profiler has written no times of ops")
    if [run.name.rpartition("/")[2] for run in runs] != [words[1] for words in shapes]:
        raise ValueError("MindSpore's profiler has written shapes of other ops than it has timed")
    return [replace(run, shapes=_shapes(words)) for run, words in zip(runs, shapes, strict=True)]


def _lines(folder: Path, pattern: str) -> list[str]:
    lines = (line for file in sorted(folder.rglob(pattern)) for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line.strip()]


def _shapes(words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    found = (SHAPE.fullmatch(word) for word in words)
    return tuple(tuple(int(size) for size in match[1].split(",") if size.strip()) for match in found if match)


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

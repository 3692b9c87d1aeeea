"""Where the time of profiled steps went: a trace for a viewer, and tables."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mindspore_palm.files import write_atomically
from mindspore_palm.tables import table
from mindspore_palm.train.log.op_times import (
    ALL_PARTS,
    COLLECTIVES,
    MATMULS,
    NETWORK,
    OPTIMIZER,
    OpRun,
    busy_seconds,
    in_backward,
)

OP_TYPES = 12  # rows of the table by op type
BETWEEN, DATA, AFTER = "between ops", "reading the batch", "after the step"
LOOP, OPS = 1, 2  # processes of the trace; Perfetto takes 0 for idling
GAP = 2  # ns between spans of the trace, which are rounded


@dataclass(frozen=True)
class StepTimes:
    """When a step was what it was at, in seconds since 1970."""

    step: int
    start: float
    """It begins to read its batch."""
    read: float
    """The batch is read, and the graph starts."""
    end: float
    """Loss and gradient norm are there."""

    @property
    def seconds(self) -> float:
        """Duration, as in metrics.csv."""
        return self.end - self.start


@dataclass(frozen=True)
class StepProfile:
    """Profiled steps with their op runs."""

    steps: Sequence[StepTimes]
    runs: Sequence[OpRun]
    stopped: float
    """When the profiler stopped, in seconds since 1970."""
    vocab: int
    """Rows of the embedding on this device."""
    before: Sequence[float] = ()
    """Seconds of steps that were not profiled, to compare with."""

    def inside(self) -> list[list[OpRun]]:
        """Op runs of each step; those between two steps, as of an evaluation, are left out."""
        found: list[list[OpRun]] = []
        for step in self.steps:
            found.append([run for run in self.runs if step.read <= run.start < step.end])
        return found

    @property
    def seconds(self) -> float:
        """Mean duration of a step."""
        return sum(step.seconds for step in self.steps) / len(self.steps)

    def parts(self) -> dict[str, tuple[float, float]]:
        """Seconds of a step by part: of the forward pass, and of the backward pass."""
        sums: dict[str, list[float]] = {part: [0.0, 0.0] for part in ALL_PARTS}
        for runs in self.inside():
            for run, backward in zip(runs, in_backward(runs), strict=True):
                sums[run.part(self.vocab)][backward] += run.seconds / len(self.steps)
        return {part: (forward, backward) for part, (forward, backward) in sums.items() if forward + backward}

    def types(self) -> dict[str, tuple[float, float]]:
        """Runs in a step and their seconds, by op type; the longest first."""
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for runs in self.inside():
            for run in runs:
                sums[run.type][0] += 1 / len(self.steps)
                sums[run.type][1] += run.seconds / len(self.steps)
        return {name: (count, seconds) for name, (count, seconds) in sorted(sums.items(), key=lambda item: -item[1][1])}

    def host(self) -> dict[str, float]:
        """Seconds of a step in which no op runs, and those between steps."""
        count = len(self.steps)
        busy = sum(map(busy_seconds, self.inside())) / count
        data = sum(step.read - step.start for step in self.steps) / count
        starts = [*(step.start for step in self.steps[1:]), self.stopped]
        after = sum(start - step.end for step, start in zip(self.steps, starts, strict=True)) / count
        return {BETWEEN: self.seconds - data - busy, DATA: data, AFTER: after}

    def kinds(self) -> dict[str, float]:
        """Seconds of a step by what the planner predicts."""
        sums = dict.fromkeys(("matmuls", "memory traffic", COLLECTIVES, OPTIMIZER), 0.0)
        for runs in self.inside():
            for run in runs:
                kind = "matmuls" if run.type in MATMULS else "memory traffic"
                kind = {COLLECTIVES: COLLECTIVES, OPTIMIZER: OPTIMIZER}.get(run.part(self.vocab), kind)
                sums[kind] += run.seconds / len(self.steps)
        return sums


def write_trace(file: Path, profile: StepProfile) -> None:
    """Writes a trace in Chrome's format, which ui.perfetto.dev and chrome://tracing open; times are in microseconds.

    Raises:
        OSError: the file could not be written.
    """
    first = profile.steps[0].start

    def span(name: str, start: float, end: float, process: int, thread: int, **details: Any) -> _Span:
        at, until = (round(1e9 * (seconds - first)) for seconds in (start, end))
        return _Span(at, until, {"ph": "X", "name": name, "pid": process, "tid": thread, **details})

    def named(kind: str, name: str, process: int, thread: int) -> dict[str, Any]:
        return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}

    runs = [run for run in profile.runs if run.start >= first]
    threads = {thread: number for number, thread in enumerate(sorted({run.thread for run in runs}), 1)}
    events = [named("process_name", name, process, 1) for process, name in ((LOOP, "training loop"), (OPS, "ops"))]
    events.append(named("thread_name", "steps", LOOP, 1))
    events += [named("thread_name", f"thread {number}", OPS, number) for number in threads.values()]
    spans = []
    for step in profile.steps:
        spans.append(span(f"step {step.step}", step.start, step.end, LOOP, 1))
        spans.append(span(DATA, step.start, step.read, LOOP, 1))
        spans.append(span("graph", step.read, step.end, LOOP, 1))
    events += _nested(spans)
    for thread, number in threads.items():
        spans = []
        for run in runs:
            if run.thread == thread:
                part = run.part(profile.vocab)
                details = {"cat": part, "args": {"op": run.name, "part": part, "shapes": str(run.shapes)}}
                spans.append(span(run.type, run.start, run.end, OPS, number, **details))
        events += _nested(spans)
    with write_atomically(file) as content:
        content.write(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())


@dataclass
class _Span:
    """A span of the trace; times are in ns."""

    start: int
    end: int
    event: dict[str, Any]


def _nested(spans: Sequence[_Span]) -> Iterator[dict[str, Any]]:
    """Events of a thread whose spans follow each other or nest, with a gap; viewers drop or misplace any others.

    They overlap as given, because seconds since 1970 are in steps of 0.2 us. The earlier one then ends where the later
    one starts. The gap is for viewers that add ``ts`` and ``dur`` in float64, or round both down.
    """
    opened: list[_Span] = []
    ordered = sorted(spans, key=lambda span: (span.start, -span.end))
    for span in ordered:
        left = next((n for n, one in enumerate(opened) if one.end <= span.start or one.end < span.end), len(opened))
        limit = span.start
        for earlier in opened[left:]:  # the outer ones first
            limit = earlier.end = max(earlier.start, min(earlier.end, limit - GAP))
        del opened[left:]
        if opened:
            span.end = max(span.start, min(span.end, opened[-1].end - GAP))
        opened.append(span)
    for span in ordered:
        yield {**span.event, "ts": span.start / 1e3, "dur": (span.end - span.start) / 1e3}


def describe_profile(profile: StepProfile, planned: Mapping[str, float] | None = None, machine: str = "") -> str:
    """Tables of where a step's time went.

    Args:
        profile: the steps.
        planned: seconds of a step by kind, as the planner predicts them.
        machine: for which it does, in words.
    """
    total, steps = profile.seconds, profile.steps
    usual = f"; steps without the profiler took {_ms(median(profile.before))} ms" if profile.before else ""
    numbers = f"step {steps[0].step}" if len(steps) == 1 else f"steps {steps[0].step} to {steps[-1].step}"
    title = f"{numbers}: {_ms(total)} ms per step{usual}"
    host = profile.host()
    rows = []
    for part, (a, b) in profile.parts().items():
        passes = (_ms(a) if a else "", _ms(b) if b else "") if part in NETWORK else ("", "")
        rows.append((part, *passes, _ms(a + b), f"{(a + b) / total:.1%}"))
    rows += [(name, "", "", _ms(host[name]), f"{host[name] / total:.1%}") for name in (BETWEEN, DATA)]
    rows.append((f"{AFTER}: evaluation, records, checkpoints", "", "", _ms(host[AFTER]), "not in it"))
    types = profile.types()
    shown = [(name, f"{n:,.0f}", _ms(s), f"{s / total:.1%}") for name, (n, s) in list(types.items())[:OP_TYPES]]
    if rest := list(types.values())[OP_TYPES:]:
        count, seconds = sum(n for n, _ in rest), sum(s for _, s in rest)
        shown.append((f"{len(rest)} others", f"{count:,.0f}", _ms(seconds), f"{seconds / total:.1%}"))
    texts = [
        title,
        table(("part", "forward ms", "backward ms", "ms", "of the step"), rows),
        table(("op", "runs per step", "ms", "of the step"), shown),
    ]
    if planned is not None:
        texts.append(_compared(profile, planned, machine))
    return "\n\n".join(texts)


def _compared(profile: StepProfile, planned: Mapping[str, float], machine: str) -> str:
    measured = profile.kinds()
    rows = [
        (kind, _ms(measured.get(kind, 0.0)), _ms(planned.get(kind, 0.0)))
        for kind in dict.fromkeys([*measured, *planned])
        if measured.get(kind, 0.0) or planned.get(kind, 0.0)
    ]
    rest = profile.seconds - sum(measured.values())
    rows.append((f"{BETWEEN}, and {DATA}", _ms(rest), "not planned"))
    rows.append(("step", _ms(profile.seconds), _ms(sum(planned.values()))))
    return f"{table(('', 'measured ms', 'planned ms'), rows)}\n\nplanned for {machine}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f}"

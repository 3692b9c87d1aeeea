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

    def span(name: str, start: float, end: float, process: int, thread: int, **details: Any) -> dict[str, Any]:
        at, until = (round(1e9 * (seconds - first)) for seconds in (start, end))  # ns
        event = {"ph": "X", "name": name, "ts": at / 1e3, "dur": (until - at) / 1e3, "pid": process, "tid": thread}
        return {**event, **details}

    def named(kind: str, name: str, process: int, thread: int) -> dict[str, Any]:
        return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}

    runs = [run for run in profile.runs if run.start >= first]
    threads = {thread: number for number, thread in enumerate(sorted({run.thread for run in runs}), 1)}
    events = [named("process_name", name, process, 1) for process, name in ((LOOP, "training loop"), (OPS, "ops"))]
    events.append(named("thread_name", "steps", LOOP, 1))
    events += [named("thread_name", f"thread {number}", OPS, number) for number in threads.values()]
    for step in profile.steps:
        events.append(span(f"step {step.step}", step.start, step.end, LOOP, 1))
        events.append(span(DATA, step.start, step.read, LOOP, 1))
        events.append(span("graph", step.read, step.end, LOOP, 1))
    for run, end in _without_overlaps(runs):
        part = run.part(profile.vocab)
        details = {"cat": part, "args": {"op": run.name, "part": part, "shapes": str(run.shapes)}}
        events.append(span(run.type, run.start, end, OPS, threads[run.thread], **details))
    with write_atomically(file) as content:
        content.write(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())


def _without_overlaps(runs: Sequence[OpRun]) -> Iterator[tuple[OpRun, float]]:
    """Runs and their ends, one thread after the other, so that those of a thread follow each other or nest.

    Seconds since 1970 are float64, in steps of 0.2 us. So neighbours may overlap, and Perfetto drops spans that do. The
    earlier one ends where the later one starts.
    """
    for thread in sorted({run.thread for run in runs}):
        own = sorted((run for run in runs if run.thread == thread), key=lambda run: (run.start, -run.end))
        ends = [run.end for run in own]
        opened: list[int] = []
        for number, run in enumerate(own):
            while opened and ends[opened[-1]] < run.end:
                earlier = opened.pop()
                ends[earlier] = min(ends[earlier], run.start)
            opened.append(number)
        yield from zip(own, ends, strict=True)


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

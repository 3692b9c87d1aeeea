"""When each device of a pipeline computes what: a schedule, played with the times of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from mindspore_palm.errors import UserError
from mindspore_palm.plan.schedules import (
    BACKWARD,
    BOTH,
    FORWARD,
    WEIGHTS,
    Schedule,
    Task,
    make_schedule,
    needs,
    result,
)


@dataclass(frozen=True)
class StageTimes:
    """Seconds of the tasks of a stage, for one micro-batch."""

    forward: float
    backward: float
    """Gradient of the stage's input, with what is recomputed for it."""
    weights: float
    """Gradient of the stage's weights."""

    def of(self, kind: str) -> float:
        """Seconds of a kind of task."""
        both = self.backward + self.weights
        return {FORWARD: self.forward, BACKWARD: self.backward, WEIGHTS: self.weights, BOTH: both}[kind]

    @property
    def total(self) -> float:
        """Seconds of all three tasks."""
        return self.forward + self.backward + self.weights

    def plus(self, other: StageTimes, times: float = 1.0) -> StageTimes:
        """The sum with another one, which counts ``times``."""
        return StageTimes(
            self.forward + times * other.forward,
            self.backward + times * other.backward,
            self.weights + times * other.weights,
        )


@dataclass(frozen=True)
class Timeline:
    """Start and end of every task, in seconds, by device."""

    schedule: Schedule
    spans: tuple[tuple[tuple[Task, float, float], ...], ...]

    @property
    def seconds(self) -> float:
        """From the first task to the last."""
        return max(span[-1][2] for span in self.spans)

    def busy(self, device: int) -> float:
        """Seconds in which a device computes."""
        return sum(end - start for _, start, end in self.spans[device])

    def idle(self, device: int) -> float:
        """Seconds in which a device waits between its first task and its last."""
        span = self.spans[device]
        return span[-1][2] - span[0][1] - self.busy(device)

    @property
    def bubble(self) -> float:
        """Seconds that the step takes beyond the work of the busiest device."""
        return self.seconds - max(map(self.busy, range(self.schedule.devices)))

    def held(self, device: int) -> float:
        """The most micro-batches whose activations a device holds at once, as in ``Schedule.held``."""
        return self.schedule.held(device)


def play(schedule: Schedule, times: Sequence[StageTimes], link: float = 0.0) -> Timeline:
    """Plays a schedule: each device starts its next task as soon as what it needs has arrived.

    Args:
        schedule: the order of tasks.
        times: of each stage.
        link: seconds from the end of a task to the arrival of its result on another device. Sends overlap with tasks.

    Raises:
        ValueError: devices wait for each other, so the schedule never ends.
    """
    ends = _ends(schedule, times, link)
    seconds = {kind: [time.of(kind) for time in times] for kind in (FORWARD, BACKWARD, WEIGHTS, BOTH)}
    return Timeline(
        schedule,
        tuple(
            tuple((task, end - seconds[task.kind][task.stage], end) for task, end in zip(order, device, strict=True))
            for order, device in zip(schedule.orders, ends, strict=True)
        ),
    )


def _ends(schedule: Schedule, times: Sequence[StageTimes], link: float) -> list[list[float]]:
    """The end of each task, by device, as ``play``."""
    seconds = [[time.of(kind) for time in times] for kind in (FORWARD, BACKWARD, WEIGHTS, BOTH)]
    finished: list[float] = [-1.0] * (schedule.stages * 2 * schedule.micro_batches)
    ends: list[list[float]] = [[] for _ in schedule.orders]
    waiting: dict[int, list[int]] = {}  # devices, by the number of the result that they wait for
    ready, compiled = list(range(schedule.devices)), _compile(schedule)
    while ready:
        device = ready.pop()
        mine, order = ends[device], compiled[device]
        free = mine[-1] if mine else 0.0
        for here, there, own, kind, stage in islice(order, len(mine), None):
            start = free
            if here >= 0 and (end := finished[here]) > start:
                start = end
            if there >= 0:
                if (end := finished[there]) < 0:
                    waiting.setdefault(there, []).append(device)
                    break
                if end + link > start:
                    start = end + link
            if here >= 0 and finished[here] < 0:  # of the same device, so that nobody can end it
                break
            free = start + seconds[kind][stage]
            mine.append(free)
            if own >= 0:
                finished[own] = free
                ready += waiting.pop(own, ())
    stuck = [device for device, order in enumerate(compiled) if len(ends[device]) < len(order)]
    if stuck:
        raise ValueError(f"{schedule.name}: devices {stuck} wait for each other")
    return ends


@lru_cache(maxsize=64)
def _compile(schedule: Schedule) -> list[list[tuple[int, int, int, int, int]]]:
    """The tasks of each device, as numbers; -1 for none.

    A task is: the results it needs from its own device and from another one, its own result, its kind, its stage.
    """
    kinds = {FORWARD: 0, BACKWARD: 1, WEIGHTS: 2, BOTH: 3}
    device_of = {result(task): device for device, order in enumerate(schedule.orders) for task in order}

    def number(task: Task) -> int:
        return ((task.kind != FORWARD) * schedule.micro_batches + task.micro_batch) * schedule.stages + task.stage

    compiled = []
    for device, order in enumerate(schedule.orders):
        rows = []
        for task in order:
            needed = needs(task, schedule.stages)
            here = [number(other) for other in needed if device_of.get(other) == device]
            there = [number(other) for other in needed if device_of.get(other) != device]
            own = -1 if task.kind == WEIGHTS else number(task)
            rows.append((max(here, default=-1), max(there, default=-1), own, kinds[task.kind], task.stage))
        compiled.append(rows)
    return compiled


def pipeline_seconds(
    name: str, devices: int, chunks: int, micro_batches: int, times: Sequence[StageTimes], link: float = 0.0
) -> float:
    """Seconds from the first task of a pipeline's step to the last.

    With many micro-batches, two steps with fewer are played, and what the micro-batches between them add is
    extrapolated: once every device is busy, each round of micro-batches takes as long as the one before.

    Args:
        name: of the schedule.
        devices: of the pipeline.
        chunks: stages of each device.
        micro_batches: of the step.
        times: of each stage, from the embedding.
        link: as in ``play``.

    Raises:
        UserError: the schedule cannot have these sizes.
    """
    ends = [_ends(schedule, times, link) for schedule in played(name, devices, chunks, micro_batches)]
    seconds = [max(device[-1] for device in one) for one in ends]
    return extrapolate(played_sizes(devices, micro_batches), seconds, micro_batches)


@lru_cache(maxsize=4096)
def most_held(name: str, devices: int, chunks: int, micro_batches: int) -> tuple[float, ...]:
    """The most micro-batches that each device of a pipeline holds activations of.

    Raises:
        UserError: the schedule cannot have these sizes.
    """
    schedules, sizes = played(name, devices, chunks, micro_batches), played_sizes(devices, micro_batches)
    held = [[schedule.held(device) for schedule in schedules] for device in range(devices)]
    return tuple(extrapolate(sizes, values, micro_batches) for values in held)


def played(name: str, devices: int, chunks: int, micro_batches: int) -> list[Schedule]:
    """The schedules that are played for a step.

    Raises:
        UserError: the schedule cannot have these sizes.
    """
    try:
        return [make_schedule(name, devices, n, chunks) for n in played_sizes(devices, micro_batches)]
    except UserError:
        make_schedule(name, devices, micro_batches, chunks)  # refuses, with the step's own number
        raise


def played_sizes(devices: int, micro_batches: int) -> tuple[int, ...]:
    """Numbers of micro-batches to play: that of the step, or two that are smaller and leave the same remainder."""
    rounds = 2 * devices  # even, and a multiple of what an interleaved schedule takes at once
    first = rounds + micro_batches % rounds
    return (micro_batches,) if micro_batches <= first + rounds else (first, first + rounds)


def extrapolate(sizes: Sequence[int], values: Sequence[float], micro_batches: int) -> float:
    """A value that grows by the same amount with each micro-batch."""
    if len(sizes) == 1:
        return values[0]
    return values[1] + (values[1] - values[0]) / (sizes[1] - sizes[0]) * (micro_batches - sizes[1])

"""When each device of a pipeline computes what: a schedule, played with the times of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mindspore_palm.plan.schedules import BACKWARD, BOTH, FORWARD, WEIGHTS, Schedule, Task, needs, result


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
        """The most micro-batches whose activations a device holds at once, as parts of one that visits all its stages.

        Activations are held from the forward pass until the weights have their gradient.
        """
        most = now = 0
        for task, _, _ in self.spans[device]:
            now += (task.kind == FORWARD) - (task.kind in (WEIGHTS, BOTH))
            most = max(most, now)
        return most / self.schedule.chunks


def play(schedule: Schedule, times: Sequence[StageTimes], link: float = 0.0) -> Timeline:
    """Plays a schedule: each device starts its next task as soon as what it needs has arrived.

    Args:
        schedule: the order of tasks.
        times: of each stage.
        link: seconds from the end of a task to the arrival of its result on another device. Sends overlap with tasks.

    Raises:
        ValueError: devices wait for each other, so the schedule never ends.
    """
    device_of = {result(task): device for device, order in enumerate(schedule.orders) for task in order}
    ends: dict[Task, float] = {}
    spans: list[list[tuple[Task, float, float]]] = [[] for _ in schedule.orders]
    moved = True
    while moved:
        moved = False
        for device, order in enumerate(schedule.orders):
            while len(spans[device]) < len(order):
                task = order[len(spans[device])]
                needed = needs(task, schedule.stages)
                if not all(other in ends for other in needed):
                    break
                arrivals = (ends[other] + (link if device_of[other] != device else 0.0) for other in needed)
                free = spans[device][-1][2] if spans[device] else 0.0
                start = max(free, *arrivals, 0.0)
                end = ends[result(task)] = start + times[task.stage].of(task.kind)
                spans[device].append((task, start, end))
                moved = True
    stuck = [device for device, order in enumerate(schedule.orders) if len(spans[device]) < len(order)]
    if stuck:
        raise ValueError(f"{schedule.name}: devices {stuck} wait for each other")
    return Timeline(schedule, tuple(map(tuple, spans)))

"""Schedules of a pipeline: the order in which each device computes the micro-batches of its stages.

The network is cut into consecutive stages, counted from the embedding. A device has one of them, or several chunks. A
stage computes three tasks of each micro-batch: forward, backward (the gradient of its input, for which the stage before
waits) and weights (the gradient of its weights, for which nobody waits). Older schedules compute the last two as one.

Sources: GPipe arXiv 1811.06965; 1F1B 2006.09503; interleaved 1F1B 2104.04473; ZB-H1 2401.10241; ZB-V 2405.15362;
DualPipe 2412.19437.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from mindspore_palm.errors import UserError

FORWARD, BACKWARD, WEIGHTS, BOTH = "F", "B", "W", "BW"
"""Kinds of tasks. BOTH is backward and weights as one: the stage before gets its gradient when both are done."""


class Task(NamedTuple):
    """Work that a device computes without a break."""

    kind: str
    micro_batch: int
    stage: int


Order = list[Task]


@dataclass(frozen=True, eq=False)  # equal only to itself, so that what follows from it can be cached
class Schedule:
    """The order of tasks on each device."""

    name: str
    stages: int
    orders: tuple[Order, ...]
    """For each device, its tasks."""
    chunks: int = 1
    """Stages of a device that cut the network once; DualPipe has each stage twice instead."""
    copies: int = 1
    """Copies of each weight in the pipeline."""

    @property
    def devices(self) -> int:
        """The number of devices of the pipeline."""
        return len(self.orders)

    @cached_property
    def micro_batches(self) -> int:
        """The number of micro-batches of a step."""
        return 1 + max(task.micro_batch for order in self.orders for task in order)

    def held(self, device: int) -> float:
        """The most micro-batches whose activations a device holds at once, as parts of one that visits all its stages.

        Activations are held from the forward pass until the weights have their gradient.
        """
        most = now = 0
        for task in self.orders[device]:
            now += (task.kind == FORWARD) - (task.kind in (WEIGHTS, BOTH))
            most = max(most, now)
        return most / self.chunks

    def stages_of(self, device: int) -> tuple[int, ...]:
        """The stages that a device computes."""
        return self._stages[device]

    @cached_property
    def _stages(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(sorted({task.stage for task in order})) for order in self.orders)


def gpipe(devices: int, micro_batches: int) -> Schedule:
    """All forward passes, then all backward passes."""

    def order(device: int) -> Iterator[Task]:
        for i in range(micro_batches):
            yield Task(FORWARD, i, device)
        for i in range(micro_batches):
            yield Task(BOTH, i, device)

    return _schedule("gpipe", devices, order)


def one_f_one_b(devices: int, micro_batches: int) -> Schedule:
    """As soon as a micro-batch has come back, its backward pass: 1F1B."""

    def order(device: int) -> Iterator[Task]:
        ahead = min(devices - 1 - device, micro_batches)
        for i in range(micro_batches + ahead):
            if i < micro_batches:
                yield Task(FORWARD, i, device)
            if i >= ahead:
                yield Task(BOTH, i - ahead, device)

    return _schedule("1f1b", devices, order)


def interleaved(devices: int, micro_batches: int, chunks: int = 2) -> Schedule:
    """1F1B with two chunks or more on each device, so that a micro-batch visits it as often.

    Raises:
        UserError: the micro-batches do not divide into groups of one per device.
    """
    if micro_batches % devices:
        raise UserError(
            f"{micro_batches} micro-batches do not divide by {devices} devices, as each chunk passes them in groups; "
            f"take {-(-micro_batches // devices) * devices}"
        )
    count = micro_batches * chunks

    def visit(k: int, last_first: bool) -> tuple[int, int]:
        """Micro-batch and chunk of the k-th visit: a group of micro-batches passes chunk by chunk."""
        group, inside = divmod(k, devices * chunks)
        chunk, member = divmod(inside, devices)
        return group * devices + member, chunks - 1 - chunk if last_first else chunk

    def order(device: int) -> Iterator[Task]:
        ahead = min(2 * (devices - 1 - device) + (chunks - 1) * devices, count)
        for k in range(count + ahead):
            if k < count:
                i, chunk = visit(k, last_first=False)
                yield Task(FORWARD, i, chunk * devices + device)
            if k >= ahead:
                i, chunk = visit(k - ahead, last_first=True)
                yield Task(BOTH, i, chunk * devices + device)

    return _schedule("interleaved 1f1b", devices, order, chunks)


def zb_h1(devices: int, micro_batches: int) -> Schedule:
    """1F1B whose gradients of weights wait until a device would idle.

    The device of stage s computes them s micro-batches late. It holds no more activations than 1F1B's first device.
    """

    def order(device: int) -> Iterator[Task]:
        ahead = min(devices - 1 - device, micro_batches)
        weights = iter(range(micro_batches))
        for i in range(micro_batches + ahead):
            if i < micro_batches:
                yield Task(FORWARD, i, device)
            if i >= ahead:
                yield Task(BACKWARD, i - ahead, device)
                if i - ahead >= device or i >= micro_batches:
                    yield Task(WEIGHTS, next(weights), device)
        yield from (Task(WEIGHTS, i, device) for i in weights)

    return _schedule("zb-h1", devices, order)


def zb_v(devices: int, micro_batches: int) -> Schedule:
    """Two chunks on each device, the second on the way back, so that the first device has the embedding and the logits.

    If the three tasks take the same time, no device idles between its first task and its last. It holds no more
    activations than 1F1B's first device.

    Raises:
        UserError: the micro-batches are fewer than twice the devices less one.
    """
    if micro_batches < 2 * devices - 1:
        raise UserError(
            f"{micro_batches} micro-batches are too few for {devices} devices; take {2 * devices - 1} or more"
        )

    def order(device: int) -> Iterator[Task]:
        there = _Stage(0, micro_batches, device)
        back = _Stage(0, micro_batches, 2 * devices - 1 - device)
        inner = devices - device
        for _ in range(2 * inner - 1):
            yield there.forward()
        for _ in range(device):
            yield from (back.forward(), there.forward())
        for _ in range(inner):
            yield from (back.forward(), back.backward(), back.weights())
        while there.has_forward or back.has_forward:
            if there.has_forward:
                yield there.forward()
            yield from (there.backward(), there.weights())
            if back.has_forward:
                yield from (back.forward(), back.backward(), back.weights())
        for _ in range(device):
            yield from (there.backward(), back.backward())
        for _ in range(inner):
            yield from (there.backward(), there.weights())
        for stage in (back, there):
            while stage.has_weights:
                yield stage.weights()

    return _schedule("zb-v", devices, order, chunks=2)


def dualpipe(devices: int, micro_batches: int) -> Schedule:
    """Half of the micro-batches enter at either end, so that each device has two stages, and each weight two copies.

    Raises:
        UserError: the devices are odd, or the micro-batches are odd or fewer than twice the devices.
    """
    if devices % 2 or micro_batches % 2 or micro_batches < 2 * devices:
        raise UserError(
            f"{devices} devices and {micro_batches} micro-batches must both be even, and the micro-batches at least "
            "twice the devices"
        )

    half, half_devices = micro_batches // 2, devices // 2

    def order(device: int) -> Iterator[Task]:
        near = min(device, devices - 1 - device)  # devices to the end that is nearer
        inner = half_devices - 1 - near
        ways = (_Stage(0, half, device), _Stage(half, half, devices - 1 - device))
        own, other = ways if device < half_devices else reversed(ways)  # own: of those that enter at the nearer end
        late: list[_Stage] = []  # whose weights wait

        def split(stage: _Stage) -> Task:
            late.append(stage)
            return stage.backward()

        for _ in range(2 * inner):
            yield own.forward()
        for _ in range(near + 1):
            yield from (own.forward(), other.forward())
        for _ in range(inner):
            yield from (other.backward(), other.weights(), other.forward())
        for _ in range(half - devices + near + 1):
            yield from (own.forward(), other.both(), other.forward(), own.both())
        for _ in range(inner):
            yield from (other.both(), other.forward(), own.both())
        for k, stage in enumerate((other, own) * (near + 1)):
            yield stage.both() if k < near + 1 else split(stage)
        for _ in range(inner):
            yield late.pop(0).weights()
            yield split(own)
        yield from (stage.weights() for stage in late)

    return _schedule("dualpipe", devices, order, copies=2)


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved 1f1b": interleaved,
    "zb-h1": zb_h1,
    "zb-v": zb_v,
    "dualpipe": dualpipe,
}


@lru_cache(maxsize=64)
def make_schedule(name: str, devices: int, micro_batches: int, chunks: int = 1) -> Schedule:
    """The schedule with a name; 1f1b with several chunks is interleaved.

    Raises:
        UserError: there is none with these sizes.
    """
    if name in ("1f1b", "interleaved 1f1b") and chunks > 1:
        return interleaved(devices, micro_batches, chunks)
    if name not in SCHEDULES:
        raise UserError(f"no schedule is called {name!r}; the schedules are {', '.join(SCHEDULES)}")
    schedule = SCHEDULES[name](devices, micro_batches)
    if schedule.chunks != chunks:
        raise UserError(f"{name} has {schedule.chunks} chunk{'s' * (schedule.chunks > 1)} per device, not {chunks}")
    return schedule


class _Stage:
    """The tasks of a stage, micro-batch after micro-batch."""

    def __init__(self, first: int, count: int, stage: int) -> None:
        self._stage, self._end = stage, first + count
        self._next = dict.fromkeys((FORWARD, BACKWARD, WEIGHTS), first)

    def _task(self, kind: str, *parts: str) -> Task:
        i = self._next[parts[0]]
        for part in parts:
            self._next[part] += 1
        return Task(kind, i, self._stage)

    def forward(self) -> Task:
        return self._task(FORWARD, FORWARD)

    def backward(self) -> Task:
        return self._task(BACKWARD, BACKWARD)

    def weights(self) -> Task:
        return self._task(WEIGHTS, WEIGHTS)

    def both(self) -> Task:
        """Backward and weights as one."""
        return self._task(BOTH, BACKWARD, WEIGHTS)

    @property
    def has_forward(self) -> bool:
        return self._next[FORWARD] < self._end

    @property
    def has_weights(self) -> bool:
        return self._next[WEIGHTS] < self._next[BACKWARD]


def _schedule(
    name: str, devices: int, order: Callable[[int], Iterator[Task]], chunks: int = 1, copies: int = 1
) -> Schedule:
    """A schedule of devices that each have as many stages."""
    return Schedule(name, devices * chunks, tuple(list(order(device)) for device in range(devices)), chunks, copies)


def needs(task: Task, stages: int) -> Sequence[Task]:
    """The tasks whose results a task computes from."""
    kind, i, stage = task
    if kind == FORWARD:
        return (Task(FORWARD, i, stage - 1),) if stage else ()
    if kind == WEIGHTS:
        return (Task(BACKWARD, i, stage),)
    if stage < stages - 1:
        return (Task(FORWARD, i, stage), Task(BACKWARD, i, stage + 1))
    return (Task(FORWARD, i, stage),)


def result(task: Task) -> Task:
    """The task as others need it: of backward and weights as one, the backward pass."""
    return task._replace(kind=BACKWARD) if task.kind == BOTH else task

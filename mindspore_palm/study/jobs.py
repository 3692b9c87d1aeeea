"""Runs of a study side by side: processes that train, each on its share of the processors."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.launch.supervisor import PR_SET_PDEATHSIG, prctl
from mindspore_palm.machine import available_memory, processors
from mindspore_palm.study.runs import Task

if TYPE_CHECKING:
    from mindspore_palm.study.trainer import Trainer  # starts MindSpore, before a process has its processors

RUNTIME = {"MS_DEV_RUNTIME_CONF": "pipeline:False"}
"""Of a process with one processor, which the threads of MindSpore's pipeline of launches would only take turns on."""

MOST = 16
"""Processes of a study whose user names no number."""
MEMORY = 2 * 2**30
"""Bytes that a process of a study may take: twice what one of the quick study takes."""


def as_many_as_fit() -> int:
    """Processes that train side by side if the user names no number: one for each processor, if memory suffices."""
    return max(1, min(processors(), available_memory() // MEMORY, MOST))


class Jobs:
    """Processes of their own, which end with this one. Results are those of one process, bit by bit.

    Args:
        count: of processes.
        settings: of any run: they name the text.

    Raises:
        UserError: there are more processes than processors.
    """

    def __init__(self, count: int, settings: Settings) -> None:
        if not 1 <= count <= processors():
            raise UserError(f"--jobs {count}: from 1 to {processors()}, the processors that this process may use")
        shares = [_processors()[i::count] for i in range(count)]
        self._settings, self._shares = settings, shares
        self._processes: dict[Connection, Any] = {}

    def __enter__(self) -> Jobs:
        spawn = multiprocessing.get_context("spawn")
        for share in self._shares:
            here, there = spawn.Pipe()
            process = spawn.Process(target=_work, args=(there, self._settings), daemon=True)
            with _on(share):
                process.start()
            there.close()
            self._processes[here] = process
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for connection, process in self._processes.items():
            process.terminate()
            process.join()
            connection.close()
        self._processes = {}

    def results(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any, float]]:
        """Tasks as they are finished, with result and seconds.

        Networks are compiled by as few processes as keep all of them busy.

        Raises:
            UserError: a process ended, or refused a task.
        """
        waiting, networks = list(tasks), {connection: "" for connection in self._processes}
        running: dict[Connection, Task] = {}
        idle = list(self._processes)
        while waiting or running:
            while idle and waiting:
                connection = idle.pop()
                task = _next(waiting, networks, connection)
                waiting.remove(task)
                running[connection], networks[connection] = task, task.network
                with contextlib.suppress(OSError):  # it ended: the next lines find that
                    connection.send(task)
            for connection in cast("list[Connection]", wait(list(running))):
                task = running.pop(connection)
                try:
                    refusal, result, seconds = connection.recv()
                except (EOFError, OSError):
                    raise UserError(
                        f"a job ended in the middle of {task.describe()}; if memory ran out, use fewer --jobs; what is "
                        "finished is kept, and the same command resumes"
                    ) from None
                if refusal:
                    raise UserError(refusal)
                idle.append(connection)
                yield task, result, seconds


def train(trainer: Trainer, task: Task) -> dict[str, Any]:
    """The result of a task, as it is stored."""
    return dataclasses.asdict(trainer.run(task.seed, task.rate, tuple(task.extras)))


def _next(waiting: Sequence[Task], networks: dict[Connection, str], connection: Connection) -> Task:
    """The task that a process takes: of the network that it has, or of one that nobody has, or of the one most left."""
    left: dict[str, list[Task]] = {}
    for task in waiting:
        left.setdefault(task.network, []).append(task)
    own = left.get(networks[connection])
    if own:
        return own[0]
    free = [name for name in left if name not in networks.values()]
    return left[free[0] if free else max(left, key=lambda name: len(left[name]))][0]


def _processors() -> list[int]:
    """Numbers of the processors that this process may use; empty where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@contextlib.contextmanager
def _on(share: list[int]) -> Iterator[None]:
    """Processes that start here may use these processors only; libraries count them while they are imported."""
    all_of_them = _processors()
    if share:
        os.sched_setaffinity(0, share)
    try:
        with mock.patch.dict(os.environ, RUNTIME if len(share) == 1 else {}):
            yield
    finally:
        if share:
            os.sched_setaffinity(0, all_of_them)


def _work(connection: Connection, settings: Settings) -> None:
    """A process: trains the tasks that it is sent, until the other end is closed."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a process that nobody waits for would take its processor from the next
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that is waited for; it ends this one
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # MindSpore prints RUNTIME for every network
    from mindspore_palm.parallel.context import open_device
    from mindspore_palm.study.trainer import Trainer, open_text

    open_device("CPU")
    prepared = open_text(settings)
    network, trainer = "", None
    with contextlib.suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            start = time.monotonic()
            try:
                if trainer is None or task.network != network:
                    network, trainer = task.network, Trainer(task.settings[0], prepared)
                result = train(trainer, task)
            except UserError as error:
                connection.send((str(error), None, 0.0))
                continue
            connection.send(("", result, time.monotonic() - start))

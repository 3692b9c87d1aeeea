"""Processes that are watched: started again when they die, and ended with the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import psutil

from mindspore_palm.errors import UserError

LAUNCHER = "MINDSPORE_PALM_LAUNCHER"  # tells a process the id of the one that started and watches it
GLANCE = 0.5  # seconds between two looks at whether that one lives


class Died(UserError):
    """A process died or hung; the same again may do better, from the last checkpoint."""


def with_restarts(attempt: Callable[[Sequence[str]], None], command: Sequence[str], restarts: int) -> None:
    """Runs an attempt, and again when its processes have died.

    Args:
        attempt: starts a command and returns when it has ended well.
        command: script and arguments.
        restarts: how often at most.

    Raises:
        Died: once more than that.
        UserError: what a restart cannot mend.
    """
    for number in range(restarts + 1):
        try:
            attempt(command)
            return
        except Died as died:
            if number == restarts:
                raise
            print(f"{died}; starting again from the last checkpoint ({number + 1} of {restarts})", flush=True)
        command = [word for word in command if word != "--overwrite"]  # what it asked for is done


class OneProcess:
    """A command in a process of its own, which gets the signals that this one gets.

    Args:
        command: script and arguments.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - what the user started, again
            [sys.executable, *command],
            env={**os.environ, LAUNCHER: str(os.getpid())},
            start_new_session=True,  # Ctrl-C comes here alone, and is passed on
        )

    def join(self) -> None:
        """Waits for its end. What it said is said; an exit code that means something becomes this process's.

        Raises:
            Died: it was killed, or failed in a way that nobody foresaw.
        """
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, lambda n, _: self._process.send_signal(n)) for number in numbers}
        try:
            code = self._process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if code < 0:
            raise Died(f"process {self._process.pid} was ended by {signal.Signals(-code).name}")
        if code == 1:
            raise Died(f"process {self._process.pid} failed")
        if code:
            sys.exit(code)


def end_with_launcher() -> None:
    """Has this process end when the one that started it is gone, which a kill leaves no time to see to."""
    if LAUNCHER not in os.environ:
        return
    number = int(os.environ[LAUNCHER])

    def watch() -> None:
        try:
            launcher = psutil.Process(number)
            while launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE:
                time.sleep(GLANCE)
        except psutil.Error:
            pass
        try:
            for other in _launched_with_this(number):  # the scheduler would look up only half a minute later
                with suppress(psutil.Error):
                    other.kill()
        finally:
            os._exit(1)  # whatever went wrong: a process that is looked at may be gone, and then this one must go still

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def _launched_with_this(launcher: int) -> Iterator[psutil.Process]:
    """What the same launcher has started: msrun, which is this worker's parent, and its other children."""
    with suppress(psutil.Error):
        parent = psutil.Process().parent()
        for other in [*parent.children(), parent] if parent else []:
            with suppress(psutil.Error):
                if other.pid != os.getpid() and other.environ().get(LAUNCHER) == str(launcher):
                    yield other

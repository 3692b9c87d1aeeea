"""Processes that are watched: started again when they die, and ended with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

import psutil

from mindspore_palm.errors import UserError

LAUNCHER = "MINDSPORE_PALM_LAUNCHER"  # tells a process the id of the one that started and watches it
PR_SET_PDEATHSIG = 1  # of Linux (sys/prctl.h): the signal that a process gets when its parent is gone


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
    """Has this process end when the one that started it is gone, which a kill leaves no time to see to (MS-48).

    Linux kills it when the thread that started it is gone: a worker's is msrun, msrun's is the launcher, and all ask
    for that. Nothing of this process must run then: a worker may wait in C++ for others and keep Python's lock, and a
    thread of Python that watches would never wake up. On other systems it goes on.
    """
    if LAUNCHER not in os.environ or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if int(os.environ[LAUNCHER]) not in (parent.pid for parent in psutil.Process().parents()):
        os._exit(1)  # it, or msrun, went before the system knew

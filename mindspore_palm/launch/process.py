"""Processes that are watched: started again when they die, and ended with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import psutil

from mindspore_palm.console import say
from mindspore_palm.errors import OVERWRITES, STOPPED, Interrupted, UserError, same_command
from mindspore_palm.launch import stop
from mindspore_palm.launch.supervisor import GRACE, LAUNCHER, PR_SET_PDEATHSIG

OVERWRITE = "--overwrite"
LOOK = 0.1  # seconds between two looks at a process


class Died(UserError):
    """A process died or hung; the same again may do better, from the last checkpoint."""


def with_restarts(attempt: Callable[[Sequence[str], stop.Board], None], command: Sequence[str], restarts: int) -> None:
    """Runs an attempt, and again when its processes have died.

    Args:
        attempt: starts a command, whose processes share a board, and returns when it has ended well.
        command: script and arguments.
        restarts: how often at most.

    Raises:
        Died: once more than that.
        Interrupted: the user has asked to stop, whatever the attempt has come to.
        UserError: what a restart cannot fix.
    """
    if OVERWRITE in command:
        os.environ[OVERWRITES] = "1"  # attempts that are started without it still name the user's command
    stop.on_leaving(stopped_early)
    for number in range(restarts + 1):
        board = stop.Board()
        try:
            attempt(command, board)
            return
        except Died as died:
            if stop.wished():
                raise Interrupted(stopped_early()) from None
            if number == restarts:
                raise
            say(f"{died}; starting again from the last checkpoint ({number + 1} of {restarts})")
            if board.begun:  # else the earlier run is still there, and must not be taken for this one
                command = [word for word in command if word != OVERWRITE]
                stop.begun()
        finally:
            board.close()


def stopped_early() -> str:
    """What is said of processes that were stopped and could say nothing themselves."""
    return f"stopped; {same_command()} resumes from the last checkpoint, or starts over if there is none"


class OneProcess:
    """A command in a process of its own, which gets the signals that this one gets.

    Args:
        command: script and arguments.
        board: on which it notes that it has something to save; None gives it one.
    """

    def __init__(self, command: Sequence[str], board: stop.Board | None = None) -> None:
        self._board = board or stop.Board()
        with stop.blocked():
            self._process = subprocess.Popen(  # noqa: S603 - what the user started, again
                [sys.executable, *command],
                env={**os.environ, LAUNCHER: str(os.getpid()), stop.ADDRESS: self._board.address},
                start_new_session=True,  # Ctrl-C comes here alone, and is passed on
            )

    def join(self) -> None:
        """Waits for its end. What it said is said; an exit code that means something becomes this process's.

        Raises:
            Died: it was killed, or failed in a way that nobody foresaw.
            Interrupted: it was asked to stop and had to be ended, because it had nothing to save.
        """
        told, end = False, float("inf")
        try:
            with stop.polled():
                while (code := self._process.poll()) is None:
                    if stop.wished() and not told:
                        told, end = True, time.monotonic() + GRACE
                        self._process.send_signal(signal.SIGTERM)
                    if stop.insisted() or (time.monotonic() > end and not self._board.unsaved):
                        raise Interrupted(stopped_early())
                    time.sleep(LOOK)
        finally:
            end_processes(self._process)
        if code == STOPPED or (told and code < 0):
            if code != STOPPED:
                raise Interrupted(stopped_early())
            sys.exit(code)
        if code < 0:
            raise Died(f"process {self._process.pid} was ended by {signal.Signals(-code).name}")
        if code == 1:
            raise Died(f"process {self._process.pid} failed")
        if code:
            sys.exit(code)


def end_processes(process: subprocess.Popen) -> None:
    """Kills a process and what it has started."""
    if process.poll() is None:
        try:
            family = psutil.Process(process.pid).children(recursive=True)
        except psutil.Error:
            family = []
        for member in [process, *family]:
            try:
                member.kill()
            except (psutil.Error, ProcessLookupError):
                continue
        process.wait()


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

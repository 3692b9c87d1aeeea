"""Watched processes: restarted when they die, and ended with the process that started them."""

from __future__ import annotations

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
from mindspore_palm.launch.supervisor import GRACE, LAUNCHER, PR_SET_PDEATHSIG, prctl

OVERWRITE, PROFILE = "--overwrite", "--profile"
POLL_SECONDS = 0.1  # between two checks of a process


class ProcessDied(UserError):
    """A process died or hung; a restart from the last checkpoint may succeed."""


def with_restarts(
    attempt: Callable[[Sequence[str], stop.SharedFlags], None], command: Sequence[str], restarts: int
) -> None:
    """Runs an attempt, and restarts it when its processes have died.

    Args:
        attempt: starts a command, whose processes share flags, and returns when it has succeeded.
        command: script and arguments.
        restarts: at most.

    Raises:
        ProcessDied: after the last restart.
        Interrupted: the user asked to stop, whatever the result of the attempt.
        UserError: what a restart cannot fix.
    """
    if OVERWRITE in command:
        os.environ[OVERWRITES] = "1"  # so that messages of restarted processes still name the user's command
    stop.set_exit_message(stopped_message)
    for number in range(restarts + 1):
        flags = stop.SharedFlags()
        try:
            attempt(command, flags)
            return
        except ProcessDied as died:
            if stop.requested():
                raise Interrupted(stopped_message()) from None
            if number == restarts:
                raise
            say(f"{died}; starting again from the last checkpoint ({number + 1} of {restarts})")
            if flags.started:  # else the earlier run still exists, and would be taken for this one
                command = once_done(command)
                stop.mark_started()
        finally:
            flags.close()


def once_done(command: Sequence[str]) -> list[str]:
    """The command without what only its first process does: deleting an earlier run, and profiling."""
    words = [word for word in command if word != OVERWRITE and not word.startswith(f"{PROFILE}=")]
    if PROFILE in words:
        at = words.index(PROFILE)
        del words[at : at + 2]
    return words


def stopped_message() -> str:
    """Message for processes that were stopped and could print none themselves."""
    return f"stopped; {same_command()} resumes from the last checkpoint, or starts over if there is none"


class ChildProcess:
    """A command in a process of its own, to which requests to stop are forwarded.

    Args:
        command: script and arguments.
        flags: in which it records unsaved work; None creates them.
    """

    def __init__(self, command: Sequence[str], flags: stop.SharedFlags | None = None) -> None:
        self._flags = flags or stop.SharedFlags()
        with stop.blocked():
            self._process = subprocess.Popen(  # noqa: S603 - the user's own command
                [sys.executable, *command],
                env={**os.environ, LAUNCHER: str(os.getpid()), stop.FLAGS_ADDRESS: self._flags.address},
                start_new_session=True,  # Ctrl-C reaches this process alone, which forwards it
            )

    def join(self) -> None:
        """Waits for its end. A meaningful exit code becomes that of this process; its message is already printed.

        Raises:
            ProcessDied: it was killed, or failed unexpectedly.
            Interrupted: it was asked to stop and was killed, because it had nothing to save.
        """
        asked, end = False, float("inf")
        try:
            with stop.deferred():
                while (code := self._process.poll()) is None:
                    if stop.requested() and not asked:
                        asked, end = True, time.monotonic() + GRACE
                        self._process.send_signal(signal.SIGTERM)
                    if stop.forced() or (time.monotonic() > end and not self._flags.unsaved):
                        raise Interrupted(stopped_message())
                    time.sleep(POLL_SECONDS)
        finally:
            kill_tree(self._process)
        if code == STOPPED or (asked and code < 0):
            if code != STOPPED:
                raise Interrupted(stopped_message())
            sys.exit(code)
        if code < 0:
            raise ProcessDied(f"process {self._process.pid} was ended by {signal.Signals(-code).name}")
        if code == 1:
            raise ProcessDied(f"process {self._process.pid} failed")
        if code:
            sys.exit(code)


def kill_tree(process: subprocess.Popen) -> None:
    """Kills a process and its descendants."""
    if process.poll() is None:
        try:
            family = psutil.Process(process.pid).children(recursive=True)
        except psutil.Error:
            family = []
        members: list[subprocess.Popen | psutil.Process] = [process, *family]
        for member in members:
            try:
                member.kill()
            except (psutil.Error, ProcessLookupError):
                continue
        process.wait()


def exit_with_launcher() -> None:
    """Makes Linux kill this process when its launcher is gone, which may be killed without warning (MS-48).

    All processes of a job call this, and Linux kills each when the thread that started it is gone: msrun starts the
    workers, the launcher starts msrun. Only the kernel can do it: a worker may wait in C++ and hold Python's lock, so a
    watching Python thread would never wake up. On other systems, the process continues.
    """
    if LAUNCHER not in os.environ or sys.platform != "linux":
        return
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if int(os.environ[LAUNCHER]) not in (parent.pid for parent in psutil.Process().parents()):
        os._exit(1)  # the launcher, or msrun, was gone before the system call

"""The process that a command's caller sees: it starts the one that works, passes signals on, and ends in time.

The working process may be in C++ for minutes, where Python hears nothing: training a tokenizer, compiling a graph. The
supervisor hears at once. If nothing would be lost, it gives the worker a moment to end by itself and then kills it.
When it ends, whatever else the worker has started is gone as well.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from contextlib import suppress

from mindspore_palm.errors import STOPPED, same_command
from mindspore_palm.launch import stop

LAUNCHER = "MINDSPORE_PALM_LAUNCHER"  # tells a process the id of the one that started and watches it
GRACE = 2.0  # seconds to end by itself for a process that has nothing to save
LOOK = 0.2  # seconds between two looks at it once it was told to stop
KILL_TIMEOUT = 60.0  # seconds for processes that were killed to be gone
PR_SET_PDEATHSIG = 1  # of Linux (sys/prctl.h): the signal that a process gets when its parent is gone
PR_SET_CHILD_SUBREAPER = 36  # what children leave behind becomes a child of this process


def supervise() -> None:
    """Returns in a new process, which does the work and hears signals; the caller ends here with its exit code.

    A process that somebody watches already, and one of a system without ``fork``, goes on by itself.
    """
    if os.environ.get("MS_ROLE") == "MS_SCHED":  # MS-45
        stop.block()  # msrun's scheduler ends with the workers
        return
    watched = LAUNCHER in os.environ or "MS_ROLE" in os.environ
    if watched or not (hasattr(os, "fork") and hasattr(signal, "sigtimedwait")):
        stop.listen()
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _watched())
    board, supervisor = stop.Board(), os.getpid()
    worker = os.fork()
    if worker == 0:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)  # it went before the system knew
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        stop.listen(board)
        return
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    status = _watch(worker, board)
    if status < 0:  # killed: this process ends in the same way, but leaves no second core
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _watched())
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status if status >= 0 else 128 - status)


def _watch(worker: int, board: stop.Board) -> int:
    """Waits for the worker; its exit code, or the negative number of the signal that killed it."""
    wished = end = None  # when the wish came, and when the worker is ended
    while True:
        told = signal.sigtimedwait(_watched(), LOOK if wished else 3600)
        now = time.monotonic()
        if told and told.si_signo in _heard():
            if wished is None:
                wished = now
                _tell(worker, signal.SIGTERM)
            elif told.si_signo == signal.SIGINT and now - wished > stop.INSIST:
                _tell(worker, signal.SIGINT)
                end = min(end or now + GRACE, now + GRACE)
        code = _collect(worker)
        if code is not None:
            _end_all()
            return code if wished is None or code >= 0 else _stopped()
        if wished and end is None and not board.unsaved:
            end = now + GRACE
        if end and now > end:
            _tell(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            _end_all()
            return _stopped()


def _collect(worker: int) -> int | None:
    """The worker's exit code, None while it runs. Other processes that have ended are collected, too."""
    while True:
        gone, status = os.waitpid(-1, os.WNOHANG)
        if gone == worker:
            return os.waitstatus_to_exitcode(status)
        if gone == 0:
            return None


def _stopped() -> int:
    stop.write(2, f"stopped; {same_command()} resumes from the last checkpoint, or starts over if there is none\n")
    return STOPPED


def _end_all() -> None:
    """Kills what the worker has left behind."""
    end = time.monotonic() + KILL_TIMEOUT
    while time.monotonic() < end:
        try:
            gone, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if gone == 0:
            import psutil  # rarely: it takes a while

            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.02)


def _heard() -> set[int]:
    """The signals that ask to stop, less a hangup that the user has ignored (nohup)."""
    return {number for number in stop.SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}


def _watched() -> set[int]:
    return {*_heard(), signal.SIGCHLD}


def _tell(process: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)

"""The process that a command's caller sees: it starts the working process, forwards signals, and ends in time.

The worker may spend minutes in C++, where Python handles no signals: training a tokenizer, compiling a graph. The
supervisor reacts at once. If nothing would be lost, it gives the worker a moment to exit and then kills it. When the
supervisor ends, everything that the worker has started is gone as well.
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

LAUNCHER = "MINDSPORE_PALM_LAUNCHER"  # environment variable: id of the process that started this one and watches it
GRACE = 2.0  # seconds in which a process with nothing to save may exit by itself
POLL_SECONDS = 0.2  # between two checks of a worker that was asked to stop
KILL_TIMEOUT = 60.0  # seconds until killed processes are gone
PR_SET_PDEATHSIG = 1  # Linux (sys/prctl.h): the signal that a process gets when its parent is gone
PR_SET_CHILD_SUBREAPER = 36  # orphaned descendants become children of this process


def supervise() -> None:
    """Returns in a new process, which does the work and handles signals; the caller ends here with its exit code.

    A process that is watched already, or one on a system without ``fork``, does the work itself.
    """
    if os.environ.get("MS_ROLE") == "MS_SCHED":  # MS-45
        stop.block()  # msrun's scheduler ends with the workers
        return
    watched = LAUNCHER in os.environ or "MS_ROLE" in os.environ
    if watched or not (hasattr(os, "fork") and hasattr(signal, "sigtimedwait")):
        stop.listen()
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _watched())
    flags, supervisor = stop.SharedFlags(), os.getpid()
    worker = os.fork()
    if worker == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)  # it was gone before the system call
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        stop.listen(flags)
        return
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    status = _watch(worker, flags)
    if status < 0:  # killed: this process ends the same way, but writes no second core
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _watched())
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status if status >= 0 else 128 - status)


def _watch(worker: int, flags: stop.SharedFlags) -> int:
    """Waits for the worker; returns its exit code, or the negative number of the signal that killed it."""
    requested = end = None  # when the request to stop came, and when the worker is killed
    while True:
        received = signal.sigtimedwait(_watched(), POLL_SECONDS if requested else 3600)
        now = time.monotonic()
        if received and received.si_signo in _stop_signals():
            if requested is None:
                requested = now
                _send(worker, signal.SIGTERM)
            elif received.si_signo == signal.SIGINT and now - requested > stop.FORCE_AFTER:
                _send(worker, signal.SIGINT)
                end = min(end or now + GRACE, now + GRACE)
        code = _collect(worker)
        if code is not None:
            _kill_rest()
            return code if requested is None or code >= 0 else _stopped()
        if requested and end is None and not flags.unsaved:
            end = now + GRACE
        if end and now > end:
            _send(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            _kill_rest()
            return _stopped()


def _collect(worker: int) -> int | None:
    """Reaps ended children; returns the worker's exit code, or None while it runs."""
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == worker:
            return os.waitstatus_to_exitcode(status)
        if ended == 0:
            return None


def _stopped() -> int:
    stop.write(2, f"stopped; {same_command()} resumes from the last checkpoint, or starts over if there is none\n")
    return STOPPED


def _kill_rest() -> None:
    """Kills the processes that the worker has left running."""
    end = time.monotonic() + KILL_TIMEOUT
    while time.monotonic() < end:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if ended == 0:
            import psutil  # here, as it is slow to import and rarely needed

            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.02)


def _stop_signals() -> set[int]:
    """The signals that request a stop, without a hangup that the user ignores (nohup)."""
    return {number for number in stop.SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}


def _watched() -> set[int]:
    return {*_stop_signals(), signal.SIGCHLD}


def _send(process: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def prctl(option: int, value: int) -> None:
    """Sets an option of this process in Linux (man 2 prctl); does nothing on other systems."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)

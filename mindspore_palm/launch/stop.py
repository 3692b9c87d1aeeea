"""Stop requests by signal, kept as state from the first line of a command to its last.

A process with nothing to save ends at once when it is asked to stop. One with unsaved work records the request and
checks it (``requested``) where it can save. Only the standard library is imported: until ``listen`` is called, a signal
kills the process.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from mindspore_palm.errors import STOPPED

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
FORCE_AFTER = 1.0  # seconds; a second Ctrl-C within them may be the first one, forwarded by another process
FLAGS_ADDRESS = "MINDSPORE_PALM_BOARD"  # environment variable: where the flags of the parent process are


class SharedFlags:
    """Flags in memory that a process shares with its children, so that it knows what killing them would lose.

    Args:
        address: of flags that another process created; None creates new ones.
    """

    UNSAVED, STARTED, DONE = 0, 1, 2

    def __init__(self, address: str | None = None) -> None:
        if address is not None:
            self._file = os.open(address, os.O_RDWR)
        elif hasattr(os, "memfd_create"):
            self._file = os.memfd_create("mindspore_palm_board")
        else:
            self._file, address = tempfile.mkstemp(prefix="mindspore_palm_board_")
        if os.fstat(self._file).st_size == 0:
            os.ftruncate(self._file, mmap.PAGESIZE)
        self._bytes = mmap.mmap(self._file, 3)
        self.address = address or f"/proc/{os.getpid()}/fd/{self._file}"

    @property
    def unsaved(self) -> bool:
        """Whether any process has unsaved work."""
        return bool(self._bytes[self.UNSAVED])

    @property
    def started(self) -> bool:
        """Whether the run's folder belongs to this run: an earlier run that was to be deleted is gone."""
        return bool(self._bytes[self.STARTED])

    @property
    def done(self) -> bool:
        """Whether the run is finished, and everything that it leaves is written."""
        return bool(self._bytes[self.DONE])

    @property
    def unfinished(self) -> bool:
        """Whether a run was started and is not finished."""
        return self.started and not self.done

    def set(self, flag: int) -> None:
        """Sets a flag for all processes."""
        self._bytes[flag] = 1

    def close(self) -> None:
        """Releases the memory."""
        self._bytes.close()
        os.close(self._file)
        if not self.address.startswith("/proc/"):
            with suppress(OSError):
                os.unlink(self.address)


@dataclass
class _State:
    """Signal state of this process."""

    request: int = 0
    """Number of the first signal; 0 if none has come."""
    since: float = 0.0
    """Time of that signal."""
    forced: bool = False
    """Whether Ctrl-C came a second time, later."""
    listening: bool = False
    owned: bool = False
    """Whether the process belongs to the command and may be ended; a notebook's does not."""
    unsaved: bool = False
    deferred: bool = False
    """Whether the process watches others and polls several times a second."""
    done: bool = False
    """Whether the run is finished, so that there is nothing left to stop."""
    flags: SharedFlags | None = None
    exit_message: Callable[[], str] = lambda: "stopped before training began"


_state = _State()


def listen(flags: SharedFlags | None = None) -> None:
    """Handles all signals from here on; until there is unsaved work, they end the process with exit code 130.

    A hangup stays ignored where the user has asked for that (nohup).

    Args:
        flags: records the progress of this process; None takes the parent's flags, if it shares any.
    """
    if flags is None and FLAGS_ADDRESS in os.environ:
        with suppress(OSError):
            flags = SharedFlags(os.environ[FLAGS_ADDRESS])
    _state.flags, _state.owned = flags, True
    _install()
    _mask(signal.SIG_UNBLOCK)


def unblock() -> None:
    """Restores the default effect of signals, in a process whose parent has blocked them."""
    _mask(signal.SIG_UNBLOCK)


def block() -> None:
    """Blocks signals here and in processes started from here, until they call ``listen``."""
    _mask(signal.SIG_BLOCK)


def ignore_signals() -> None:
    """Ignores all signals: how the process ends is decided.

    Blocking would leave out the threads of C++ libraries. Python removes its own handlers when it exits, and leaves
    ignored signals ignored.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def blocked() -> Iterator[None]:
    """Blocks signals in processes started inside, until they call ``listen``: no signal is lost, and none kills."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def handlers() -> Iterator[None]:
    """Handles signals while a run trains, also in a process that does not belong to a command, such as a notebook's.

    There a request is recorded from the start, and a second Ctrl-C raises KeyboardInterrupt.
    """
    if _state.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _install()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _forget()


@contextmanager
def deferred() -> Iterator[None]:
    """Only records requests inside: this process watches others, and polls several times a second."""
    if not _state.listening and threading.current_thread() is threading.main_thread():
        with handlers(), deferred():
            yield
        return
    if _state.flags:
        _state.flags.set(SharedFlags.UNSAVED)  # the parent then gives this process the time to end its children
    before, _state.deferred = _state.deferred, True
    try:
        yield
    finally:
        _state.deferred = before


def requested() -> bool:
    """Whether this process was asked to stop."""
    return _state.request != 0


def forced() -> bool:
    """Whether it was asked a second time, by Ctrl-C."""
    return _state.forced


def mark_unsaved() -> None:
    """Records that there is work to save: from here on, the process checks for a request to stop itself."""
    _state.unsaved = True
    if _state.flags:
        _state.flags.set(SharedFlags.UNSAVED)


def mark_started() -> None:
    """Records that the run's folder belongs to this run: nothing of an earlier run that was to be deleted is left."""
    if _state.flags:
        _state.flags.set(SharedFlags.STARTED)


def mark_done(everywhere: bool = True) -> None:
    """Records that the run is finished: a request to stop has no effect any more.

    Args:
        everywhere: whether it is finished for all processes, or only this one has nothing left to do.
    """
    _state.done = True
    if _state.flags and everywhere:
        _state.flags.set(SharedFlags.DONE)


def set_exit_message(message: Callable[[], str]) -> None:
    """Sets the message that is printed when a signal ends the process at once."""
    _state.exit_message = message


def write(stream: int, text: str) -> None:
    """Writes to standard output (1) or standard error (2) from a signal handler, which may interrupt ``print``."""
    with suppress(OSError):
        os.write(stream, text.encode(errors="backslashreplace"))


def _install() -> dict[int, Any]:
    before: dict[int, Any] = {}
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if number == getattr(signal, "SIGHUP", None) and handler == signal.SIG_IGN:
            continue
        before[number] = signal.signal(number, _handle)
    _state.listening = True
    return before


def _forget() -> None:
    _state.request, _state.forced, _state.unsaved = 0, False, False
    _state.listening = _state.done = False


def _mask(how: int) -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(how, SIGNALS)


def _handle(number: int, _: FrameType | None) -> None:
    if _state.done:
        return
    now, first = time.monotonic(), not _state.request
    if first:
        _state.request, _state.since = number, now
    elif number == signal.SIGINT and now - _state.since > FORCE_AFTER:
        _state.forced = True
    if _state.deferred:
        return
    if _state.forced or (_state.owned and not _state.unsaved):
        _exit()
    if first:
        write(1, "\nstopping after this step; Ctrl-C again stops now, without saving\n")


def _exit() -> None:
    """Ends the process at once: an exception could reach a C++ library in the middle of a call, and it would abort."""
    if not _state.owned:
        raise KeyboardInterrupt
    with suppress(RuntimeError, OSError, ValueError, AttributeError):  # print may be interrupted: then its text is lost
        sys.stdout.flush()
    text = "stopped"
    with suppress(Exception):
        text = _state.exit_message()
    write(2, f"{text}\n")
    os._exit(STOPPED)

"""A wish to stop, as a state: heard from the first line of a command to its last, and followed where nothing is lost.

A process with nothing to save ends at once when it is told to stop. One with work to save notes the wish, and asks for
it (``wished``) where it can save. Only the standard library is imported: until ``listen`` is called, a signal kills.
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

from mindspore_palm.errors import STOPPED

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
INSIST = 1.0  # seconds; a second Ctrl-C that is sooner may be the first one, passed on by another process
ADDRESS = "MINDSPORE_PALM_BOARD"  # tells a process where the board of the one that started it is


class Board:
    """Facts that a process shares with those that it starts, so that it knows what killing them would lose.

    Args:
        address: of a board that another process made; None makes one.
    """

    UNSAVED, BEGUN, DONE = 0, 1, 2

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
        """Whether some process has work that is not saved."""
        return bool(self._bytes[self.UNSAVED])

    @property
    def begun(self) -> bool:
        """Whether the run's folder is that of this run: an earlier run that had to go is deleted."""
        return bool(self._bytes[self.BEGUN])

    @property
    def left(self) -> bool:
        """Whether a run was begun and is not finished."""
        return self.begun and not self._bytes[self.DONE]

    def note(self, fact: int) -> None:
        """Has all processes see that a fact is true."""
        self._bytes[fact] = 1

    def close(self) -> None:
        """Gives the memory back."""
        self._bytes.close()
        os.close(self._file)
        if not self.address.startswith("/proc/"):
            with suppress(OSError):
                os.unlink(self.address)


@dataclass
class _State:
    """What this process knows."""

    wish: int = 0
    """The signal that came first; 0 if none has."""
    since: float = 0.0
    insisted: bool = False
    """Whether Ctrl-C came again, later."""
    listening: bool = False
    owned: bool = False
    """Whether the process is the command's own, and may be ended; a notebook's is not."""
    unsaved: bool = False
    polled: bool = False
    """Whether the process watches others and asks several times a second."""
    done: bool = False
    """Whether the run is finished, so that there is nothing left to stop."""
    board: Board | None = None
    sentence: Callable[[], str] = lambda: "stopped before training began"


_state = _State()


def listen(board: Board | None = None) -> None:
    """Hears all signals from here on; until something is unsaved, they end the process with exit code 130.

    A hangup stays ignored where the user has asked for that (nohup).

    Args:
        board: is told what this process does; None takes the one of the process that started this one, if there is one.
    """
    if board is None and ADDRESS in os.environ:
        with suppress(OSError):
            board = Board(os.environ[ADDRESS])
    _state.board, _state.owned = board, True
    _install()
    _mask(signal.SIG_UNBLOCK)


def release() -> None:
    """Lets signals do what they usually do, in a process whose starter has blocked them."""
    _mask(signal.SIG_UNBLOCK)


def block() -> None:
    """Hears nothing, and neither do processes that are started from here, until they call ``listen``."""
    _mask(signal.SIG_BLOCK)


def deafen() -> None:
    """Hears nothing any more: how the process ends is decided.

    Ignored, not blocked: that would leave out the threads of C++ libraries. Python takes its own handlers away at its
    end, and leaves this.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def blocked() -> Iterator[None]:
    """Processes that are started meanwhile hear signals only once they call ``listen``; none is lost, none kills."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def training() -> Iterator[None]:
    """Hears signals while a run trains, also in a process that is not a command's own, such as a notebook's.

    There a wish is noted from the first moment, and a second Ctrl-C raises KeyboardInterrupt.
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
def polled() -> Iterator[None]:
    """A wish is only noted meanwhile: this process watches others, and asks several times a second."""
    if not _state.listening and threading.current_thread() is threading.main_thread():
        with training(), polled():
            yield
        return
    if _state.board:
        _state.board.note(Board.UNSAVED)  # who watches this process leaves it the time to end those that it watches
    before, _state.polled = _state.polled, True
    try:
        yield
    finally:
        _state.polled = before


def wished() -> bool:
    """Whether this process was asked to stop."""
    return _state.wish != 0


def insisted() -> bool:
    """Whether it was asked again, by Ctrl-C."""
    return _state.insisted


def unsaved() -> None:
    """There is work to save from here on: a wish to stop waits until the process asks for it."""
    _state.unsaved = True
    if _state.board:
        _state.board.note(Board.UNSAVED)


def begun() -> None:
    """The run's folder is that of this run: nothing in it is of an earlier run that had to go."""
    if _state.board:
        _state.board.note(Board.BEGUN)


def done() -> None:
    """The run is finished: who asks for it to stop now gets what it has come to."""
    _state.done = True
    if _state.board:
        _state.board.note(Board.DONE)


def on_leaving(sentence: Callable[[], str]) -> None:
    """What is said when the process ends at once."""
    _state.sentence = sentence


def write(stream: int, text: str) -> None:
    """Writes to standard output (1) or standard error (2) from a signal's handler, where ``print`` may be under way."""
    with suppress(OSError):
        os.write(stream, text.encode(errors="backslashreplace"))


def _install() -> dict[int, object]:
    before = {}
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if number == getattr(signal, "SIGHUP", None) and handler == signal.SIG_IGN:
            continue
        before[number] = signal.signal(number, _hear)
    _state.listening = True
    return before


def _forget() -> None:
    _state.wish, _state.insisted, _state.unsaved = 0, False, False
    _state.listening = _state.done = False


def _mask(how: int) -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(how, SIGNALS)


def _hear(number: int, _: FrameType | None) -> None:
    if _state.done:
        return
    now, first = time.monotonic(), not _state.wish
    if first:
        _state.wish, _state.since = number, now
    elif number == signal.SIGINT and now - _state.since > INSIST:
        _state.insisted = True
    if _state.polled:
        return
    if _state.insisted or (_state.owned and not _state.unsaved):
        _leave()
    if first:
        write(1, "\nstopping after this step; Ctrl-C again stops now, without saving\n")


def _leave() -> None:
    """Ends the process here and now: an exception could come in the midst of a C++ library, which then aborts."""
    if not _state.owned:
        raise KeyboardInterrupt
    with suppress(RuntimeError, OSError, ValueError, AttributeError):  # print may be under way: then its text is lost
        sys.stdout.flush()
    text = "stopped"
    with suppress(Exception):
        text = _state.sentence()
    write(2, f"{text}\n")
    os._exit(STOPPED)

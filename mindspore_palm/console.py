"""Output of a command. A terminal, pipe or file that accepts no more text does not end a run: it is only a log."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mindspore_palm.errors import READER_GONE

if TYPE_CHECKING:
    from tqdm import tqdm

EVERY = 30.0  # seconds between two lines of progress without a terminal
STALLED = 5.0  # seconds that a non-blocking stream may be full before its text is dropped
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN)  # the stream may accept text again later

_muted = False
_bar: tqdm | None = None


class _Stream(io.RawIOBase):
    """A file descriptor. Text that it does not accept is dropped, unless the stream carries results."""

    def __init__(self, number: int, closed: bool) -> None:
        self._number, self._closed, self.results = number, closed, False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        try:
            return self._write(data)
        except OSError as error:
            if self.results:
                raise OSError(error.errno, error.strerror, "standard output") from None
            if error.errno not in FULL:  # closed permanently: output of C++ is dropped too
                with suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self._number)
            return len(data)

    def _write(self, data: Any) -> int:
        if self._closed:
            raise OSError(errno.EBADF, "standard output is closed, and nobody can read the results")
        try:
            return os.write(self._number, data)
        except BlockingIOError:  # another program made it non-blocking
            select.select([], [self._number], [], None if self.results else STALLED)
            return os.write(self._number, data)


def protect(results: bool = False) -> None:
    """Replaces standard output and standard error with streams that never fail.

    It must run before any file is opened: the next file would get the number of a closed stream, and everything printed
    would be written to it.

    Args:
        results: standard output carries the command's results, so failing to write there is an error (see ``flush``).
    """
    closed = _open_all()
    if sys.stdin is None:  # closed before Python started: reading must return end of file
        sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115 - stays open
    for number, name in ((1, "stdout"), (2, "stderr")):
        before, raw = getattr(sys, name), _Stream(number, number in closed)
        text = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=getattr(before, "encoding", None) or "utf-8",
            errors="backslashreplace",  # a path may have bytes that the encoding cannot represent
            line_buffering=number == 2 or not results or raw.isatty(),
        )
        setattr(sys, name, text)
    if results:
        results_follow()


def results_follow() -> None:
    """Marks all later output as results: failing to write it is an error."""
    if isinstance(raw := _raw_stdout(), _Stream):
        raw.results = True


def flush(code: int) -> int:
    """Writes buffered output and returns the command's exit code: 0 only if all results were written."""
    raw = _raw_stdout()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or READER_GONE
    except (OSError, ValueError) as error:
        if code == 0:
            print(f"error: {getattr(error, 'strerror', None) or error} (standard output)", file=sys.stderr)
            code = 2
    if isinstance(raw, _Stream):
        raw.results = False  # the interpreter flushes again on exit, which must not fail
    return code


def mute() -> None:
    """Silences ``say`` in this process: another worker prints."""
    global _muted
    _muted = True


def say(text: str) -> None:
    """Prints above the progress bar, unless this worker is muted. A closed output does not end the run."""
    if _muted:
        return
    try:
        if _bar is not None:
            _bar.write(text)
        else:
            print(text)
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        if isinstance(_raw_stdout(), _Stream):  # else the streams belong to a notebook or a user's script
            raise
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Bar:
    """Progress: a bar on a terminal; elsewhere, as in a log file, a line every ``EVERY`` seconds.

    Args:
        total: number of steps.
        done: steps completed before the start.
        shown: whether this process shows progress.
    """

    def __init__(self, total: int, done: int, shown: bool = True) -> None:
        self._total, self._done, self._shown, self._last = total, done, shown, float("-inf")
        self._bar: tqdm | None = None

    def __enter__(self) -> Bar:
        global _bar
        if self._shown and _is_terminal():
            from tqdm import tqdm

            self._bar = _bar = tqdm(
                total=self._total, initial=self._done, unit="step", dynamic_ncols=True, desc="compiling"
            )
        return self

    def __exit__(self, *_: object) -> None:
        global _bar
        if self._bar is not None:
            _bar = None
            with suppress(OSError, ValueError):
                self._bar.close()

    def advance(self, text: str) -> None:
        """Completes a step; ``text`` describes its result."""
        self._done += 1
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.set_description("training", refresh=False)
                self._bar.set_postfix_str(text, refresh=False)
                self._bar.update()
        elif self._shown and time.monotonic() - self._last > EVERY:
            self.show(text)

    def show(self, text: str) -> None:
        """Prints a line of progress if there is no bar."""
        if self._bar is None and self._shown:
            self._last = time.monotonic()
            say(f"step {self._done:,} of {self._total:,}: {text}")


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError, OSError):
        return False


def _open_all() -> set[int]:
    """Opens those of the descriptors 0, 1 and 2 that are closed, on the null device; returns their numbers."""
    closed = set()
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            closed.add(number)
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
            os.set_inheritable(number, True)
    return closed


def _raw_stdout() -> object:
    return getattr(getattr(sys.stdout, "buffer", None), "raw", None)

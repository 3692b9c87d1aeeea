"""Text file that grows by lines, on a disk that may be full or unavailable for a while: failed writes are retried."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from mindspore_palm.files import write_atomically


class GrowingFile:
    """Keeps all lines of a file in memory, and appends to the file those that are not written yet.

    Args:
        file: the file.
        lines: its lines, each with its line end; ``add`` adds more.
        written: how many of them the file already has; with 0 the full file is rewritten.
    """

    def __init__(self, file: Path, lines: list[str], written: int = 0) -> None:
        self._file, self._lines, self._written = file, lines, written
        self._handle: int | None = None
        self._end = 0  # bytes of the written lines; anything after them is left over from a failed write
        self._lock = threading.Lock()  # sync is called from another thread, while lines are added

    @property
    def unwritten(self) -> int:
        """Number of lines at the end that are not in the file."""
        return len(self._lines) - max(0, self._written)

    def add(self, line: str) -> None:
        """Adds a line; ``write`` writes it."""
        with self._lock:
            self._lines.append(line)

    def replace_last(self, line: str) -> None:
        """Replaces the last line; the full file is rewritten."""
        with self._lock:
            self._lines[-1], self._written = line, 0

    def write(self) -> None:
        """Writes all missing lines; when this returns, they survive the end of this process.

        Raises:
            OSError: the file could not be written; names it. The next call tries again.
        """
        with self._lock:
            try:
                self._write()
            except OSError as error:
                raise OSError(error.errno, error.strerror or str(error), str(self._file)) from error

    def sync(self) -> None:
        """Returns when all lines are on the disk.

        Raises:
            OSError: the file could not be written; names it.
        """
        self.write()
        with self._lock:
            try:
                if self._handle is not None:
                    os.fsync(self._handle)
            except OSError as error:
                raise OSError(error.errno, error.strerror or str(error), str(self._file)) from error

    def close(self) -> None:
        """Closes the file without writing."""
        with self._lock:
            self._close()

    def _write(self) -> None:
        if self._handle is not None and os.fstat(self._handle).st_nlink == 0:  # it was deleted
            self._close()
            self._written = 0
        if self._written <= 0:
            self._close()
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(self._file) as file:
                file.write("".join(self._lines).encode())
            self._written = len(self._lines)
        if self._handle is None:
            try:
                self._handle = os.open(self._file, os.O_WRONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self._written = 0
                raise
            self._end = os.fstat(self._handle).st_size
        data = memoryview("".join(self._lines[self._written :]).encode())
        at = self._end
        try:
            while data:
                size = os.pwrite(self._handle, data, at)
                data, at = data[size:], at + size
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._handle, self._end)
            raise
        self._end, self._written = at, len(self._lines)

    def _close(self) -> None:
        if self._handle is not None:
            with suppress(OSError):
                os.close(self._handle)
            self._handle = None

"""The files of the cache: one compiled graph each, sealed by a checksum, the least recently used removed first."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

from mindspore_palm.errors import UserError
from mindspore_palm.files import write_atomically
from mindspore_palm.native import cache_root

SWITCH = "MINDSPORE_PALM_GRAPHS"
"""Environment variable: a folder for the graphs, or off."""

FOLDER = "graphs"
LIMIT = 1 << 30
"""Bytes of all graphs; beyond that, the least recently used are removed."""
ROOM = 1 << 27
"""Bytes of free space below which no graph is kept or loaded."""
ABANDONED = 86_400.0
"""Seconds after which a working folder is that of a process that was killed."""

SUFFIX, WORK = ".graph", "work-"
HEADER = hashlib.sha256().digest_size


def graphs_folder() -> Path | None:
    """The folder of the graphs; None if it is switched off, or no folder can be used."""
    named = os.environ.get(SWITCH, "")
    if named == "off":
        return None
    try:
        folder = Path(named).expanduser() if named else cache_root() / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder if os.access(folder, os.W_OK | os.X_OK) and _has_room(folder) else None
    except (OSError, RuntimeError, UserError):
        return None


def _has_room(folder: Path) -> bool:
    """Whether MindSpore can write a graph: it logs an error, on standard error, if it cannot."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return shutil.disk_usage(folder).free > ROOM and (limit == resource.RLIM_INFINITY or limit > ROOM)


class GraphStore:
    """The compiled graphs in a folder, by key. What cannot be read or written is not there; nothing fails."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder, self._limit = folder, limit

    def read(self, key: str) -> bytes | None:
        """A graph; None if there is none, or a damaged one, which is removed."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        checksum, graph = data[:HEADER], data[HEADER:]
        if checksum != _checksum(key, graph):
            self.remove(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return graph

    def write(self, key: str, graph: bytes) -> None:
        """Keeps a graph, and removes others if all of them take too much space."""
        if len(graph) + HEADER > self._limit:
            return
        with contextlib.suppress(OSError):
            with write_atomically(self._path(key)) as file:
                file.write(_checksum(key, graph) + graph)
            self._shrink(self._path(key))

    def remove(self, key: str) -> None:
        """Removes a graph, if it is there."""
        with contextlib.suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    def work_folder(self) -> Path:
        """A new folder for this process, beside the graphs.

        Raises:
            OSError: there is no space.
        """
        return Path(tempfile.mkdtemp(prefix=WORK, dir=self.folder))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _shrink(self, newest: Path) -> None:
        files = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # another process removes files, too
                status = path.stat()
                if path.name.startswith(WORK) and time.time() - status.st_mtime > ABANDONED:
                    shutil.rmtree(path, ignore_errors=True)
                elif path.suffix == SUFFIX and path != newest:
                    files.append((status.st_mtime, status.st_size, path))
        total = newest.stat().st_size
        for _, size, path in sorted(files, reverse=True):
            total += size
            if total > self._limit:
                path.unlink(missing_ok=True)


def _checksum(key: str, graph: bytes) -> bytes:
    """Of a graph and its key: a file under another name is damaged, too."""
    return hashlib.sha256(key.encode() + graph).digest()

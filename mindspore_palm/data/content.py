"""Content hashes of a corpus: two corpora are the same if their bytes are, wherever they are stored."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mindspore_palm.data.bars import bar
from mindspore_palm.data.files import CorpusFile, open_file, printable
from mindspore_palm.errors import UserError
from mindspore_palm.files import write_json

READ_BYTES = 2**20
CACHED_BYTES = 256 * 2**20  # hashes of smaller files are computed each time, at about 1 GB/s
SETTLED_SECONDS = 60  # a file that changed more recently is not cached: the file system's clock may be too coarse
CACHE_FILE = "hashes.json"


def content_of(files: Sequence[CorpusFile], cache: Path, progress: bool = False) -> list[list[str]]:
    """Format, compression and hash of each file, in order.

    Names, sizes and times do not matter. The hash of a large file is cached. Its key is everything that the system
    changes when the file is written: device, inode, size, and the times of the last change of content and of inode
    (ctime, which no program can set back).

    Args:
        files: the files of a corpus.
        cache: folder that caches the hashes of large files.
        progress: show a progress bar on standard error, if that is a terminal.

    Raises:
        UserError: a file cannot be read.
    """
    known = _read_cache(cache)
    fresh: dict[str, str] = {}
    result = []
    with bar("hashing", sum(file.size for file in files), progress) as shown:
        for file in files:
            try:
                digest = _digest(file.path, known, fresh, shown.update)
            except OSError as error:
                raise UserError(f"{printable(file.path)}: {error.strerror or error}") from None
            result.append([file.format, file.compression, digest])
    if fresh:
        with contextlib.suppress(OSError):  # the cache only saves time
            write_json(cache / CACHE_FILE, {**known, **fresh})
    return result


def _digest(path: Path, known: dict[str, str], fresh: dict[str, str], count: Callable[[int], object]) -> str:
    """Hash of a file, from ``known`` or added to ``fresh`` if it is large; ``count`` gets the bytes that are read."""
    with open_file(path) as file:
        started, state = time.time(), os.fstat(file.fileno())
        times = (state.st_mtime_ns, state.st_ctime_ns)
        identity = " ".join(map(str, (state.st_dev, state.st_ino, state.st_size, *times)))
        large = state.st_size >= CACHED_BYTES
        if large and identity in known:
            return known[identity]
        hasher = hashlib.blake2b(digest_size=32)
        while block := file.read(READ_BYTES):
            hasher.update(block)
            count(len(block))
        after = os.fstat(file.fileno())
        settled = max(times) / 1e9 < started - SETTLED_SECONDS
        if large and settled and (after.st_mtime_ns, after.st_ctime_ns) == times:
            fresh[identity] = hasher.hexdigest()
        return hasher.hexdigest()


def _read_cache(cache: Path) -> dict[str, str]:
    try:
        known = json.loads((cache / CACHE_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    valid = isinstance(known, dict) and all(isinstance(value, str) for value in known.values())
    return known if valid else {}

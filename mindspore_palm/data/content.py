"""What the files of a corpus hold, as hashes: two corpora are one if their bytes are, wherever they lie."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from mindspore_palm.data.files import CorpusFile, open_file, printable
from mindspore_palm.errors import UserError
from mindspore_palm.files import write_json

BLOCK_BYTES = 2**20
REMEMBERED_BYTES = 256 * 2**20  # smaller files are read again each time, at about 1 GB/s
SETTLED_SECONDS = 60  # a file changed later than this before it was read is not remembered: its clock may be too coarse
REMEMBERED = "hashes.json"


def content_of(files: Sequence[CorpusFile], memory: Path) -> list[list[str]]:
    """How each file is read, and the hash of its bytes, in order.

    Names, sizes and times play no part. Only for a large file, the hash is remembered, with what the system changes
    whenever it is written to: device, inode, size, and the times of the last change of content and of inode (ctime,
    which no program can set back).

    Args:
        files: of a corpus.
        memory: folder in which hashes of large files are remembered.

    Raises:
        UserError: a file cannot be read.
    """
    known = _known(memory)
    fresh: dict[str, str] = {}
    result = []
    for file in files:
        try:
            digest = _digest(file.path, known, fresh)
        except OSError as error:
            raise UserError(f"{printable(file.path)}: {error.strerror or error}") from None
        result.append([file.format, file.compression, digest])
    if fresh:
        with contextlib.suppress(OSError):  # it only saves time
            write_json(memory / REMEMBERED, {**known, **fresh})
    return result


def _digest(path: Path, known: dict[str, str], fresh: dict[str, str]) -> str:
    with open_file(path) as file:
        begun, state = time.time(), os.fstat(file.fileno())
        times = (state.st_mtime_ns, state.st_ctime_ns)
        identity = " ".join(map(str, (state.st_dev, state.st_ino, state.st_size, *times)))
        large = state.st_size >= REMEMBERED_BYTES
        if large and identity in known:
            return known[identity]
        hasher = hashlib.blake2b(digest_size=32)
        while block := file.read(BLOCK_BYTES):
            hasher.update(block)
        after = os.fstat(file.fileno())
        settled = max(times) / 1e9 < begun - SETTLED_SECONDS
        if large and settled and (after.st_mtime_ns, after.st_ctime_ns) == times:
            fresh[identity] = hasher.hexdigest()
        return hasher.hexdigest()


def _known(memory: Path) -> dict[str, str]:
    try:
        known = json.loads((memory / REMEMBERED).read_bytes())
    except (OSError, ValueError):
        return {}
    sound = isinstance(known, dict) and all(isinstance(value, str) for value in known.values())
    return known if sound else {}

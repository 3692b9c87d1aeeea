"""Token files: a split as one memory-mapped array on disk, so reading a sequence reads only its own bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mindspore_palm.errors import UserError
from mindspore_palm.files import write_json

TOKENS, DOCUMENTS, META = "tokens.bin", "documents.bin", "meta.json"
OFFSET = np.dtype("<i8")
READ_BYTES = 2**20


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest dtype for the tokens of a vocabulary: uint16, or uint32 above 65,536 tokens."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class TokenFile:
    """Tokens of a split: its documents concatenated, each with a final [eod].

    Attributes:
        folder: folder of ``tokens.bin``, ``documents.bin`` and ``meta.json``, which is written last.
        tokens: uint16 or uint32 [tokens], memory-mapped.
        document_offsets: int64 [documents + 1], memory-mapped: document d is
            ``tokens[document_offsets[d] : document_offsets[d + 1]]``, its [eod] included.
        documents: number of documents.
        vocab_size: tokens of the vocabulary.
        sha256: hash of ``tokens.bin``, hexadecimal; covers the documents, their order and their ends. Empty if an
            earlier version wrote the folder.
    """

    repeats = False

    def __init__(self, folder: str | Path) -> None:
        """Opens a folder that ``TokenWriter`` finished.

        Raises:
            UserError: the folder was never finished, or one of its files is missing or truncated.
        """
        self.folder = Path(folder)
        try:
            meta = _read_meta(self.folder / META)
            count, self.documents, self.vocab_size = meta["tokens"], meta["documents"], meta["vocab_size"]
            self.sha256 = str(meta.get("sha256", ""))
            self.tokens = _map(self.folder / TOKENS, token_dtype(self.vocab_size), count)
            self.document_offsets = _map(self.folder / DOCUMENTS, OFFSET, self.documents + 1)
        except (FileNotFoundError, ValueError) as error:
            problem = f"{error.filename} is missing" if isinstance(error, FileNotFoundError) else error
            raise UserError(
                f"{self.folder}: the tokens are not complete ({problem}); delete {self.folder.parent} and prepare again"
            ) from None

    def __len__(self) -> int:
        """Number of tokens."""
        return self.tokens.shape[0]

    def sequences(self, seq_len: int) -> int:
        """Number of sequences of ``seq_len`` tokens; an incomplete last one is dropped."""
        return len(self) // seq_len

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens ``start`` to ``stop``, int32."""
        return np.asarray(self.tokens[start:stop], np.int32)

    def rows(self, indices: Sequence[int] | np.ndarray, seq_len: int) -> np.ndarray:
        """Sequences at ``indices``; sequences are consecutive and do not overlap.

        Args:
            indices: [n], each in range(sequences(seq_len)).
            seq_len: tokens per sequence.

        Returns:
            int32 [n, seq_len], a copy.

        Raises:
            IndexError: an index is out of range.
        """
        count = self.sequences(seq_len)
        chosen = np.asarray(indices, np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= count):
            raise IndexError(f"a sequence index is outside range({count})")
        return np.asarray(self.tokens[: count * seq_len].reshape(count, seq_len)[chosen]).astype(np.int32)

    def examples(self, indices: Sequence[int] | np.ndarray, seq_len: int, eod: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the sequences at ``indices``: int32 [n, seq_len] each; see ``shift``."""
        return shift(self.rows(indices, seq_len), eod)

    def real_tokens(self, indices: Sequence[int] | np.ndarray, seq_len: int) -> int:
        """Number of their targets; the loss counts all of them."""
        return len(indices) * seq_len


def shift(sequences: np.ndarray, eod: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of sequences [n, seq_len]: inputs shifted right by one, after [eod]; targets as given."""
    inputs = np.full_like(sequences, eod)
    inputs[:, 1:] = sequences[:, :-1]
    return inputs, sequences


@dataclass(frozen=True)
class Mark:
    """High-water mark of a ``TokenWriter``. progress.json stores it."""

    tokens: int = 0
    """Tokens on disk."""
    documents: int = 0
    """Completed documents."""


class TokenWriter:
    """Resumable writer of a split: tokens that a killed process wrote after its last mark are truncated.

    The folder opens as a ``TokenFile`` only after ``finish``. One process writes at a time.
    """

    def __init__(self, folder: Path, vocab_size: int, eod: int, mark: Mark = Mark()) -> None:
        """Resumes from ``mark``; the default mark starts over.

        Raises:
            ValueError: the files on disk are shorter than the mark.
            OSError: a file cannot be written; with its name.
        """
        self.folder, self.vocab_size, self.eod, self.mark = folder, vocab_size, eod, mark
        self._dtype = token_dtype(vocab_size)
        self._pending: list[np.ndarray] = []
        self._pending_tokens = 0
        self._ends: list[int] = []
        folder.mkdir(exist_ok=True)
        (folder / META).unlink(missing_ok=True)
        if mark == Mark():
            _append(folder / TOKENS, 0, b"")
            _append(folder / DOCUMENTS, 0, np.zeros(1, OFFSET).tobytes())
        elif (
            _size(folder / TOKENS) < mark.tokens * self._dtype.itemsize
            or _size(folder / DOCUMENTS) < (mark.documents + 1) * OFFSET.itemsize
        ):
            raise ValueError(f"{folder} holds less than its mark")

    def add(self, tokens: Sequence[int] | np.ndarray, ends: bool) -> None:
        """Adds tokens of the current document; ``ends`` appends [eod] and completes the document."""
        piece = np.empty(len(tokens) + ends, self._dtype)
        piece[: len(tokens)] = tokens
        piece[len(tokens) :] = self.eod
        self._pending.append(piece)
        self._pending_tokens += len(piece)
        if ends:
            self._ends.append(self.mark.tokens + self._pending_tokens)

    def flush(self) -> Mark:
        """Writes everything added so far to disk.

        Returns:
            The mark to resume from.

        Raises:
            OSError: a file cannot be written; with its name.
        """
        if not self._pending:
            return self.mark
        tokens = np.concatenate(self._pending).tobytes()
        _append(self.folder / TOKENS, self.mark.tokens * self._dtype.itemsize, tokens)
        ends = np.array(self._ends, OFFSET).tobytes()
        _append(self.folder / DOCUMENTS, (self.mark.documents + 1) * OFFSET.itemsize, ends)
        self.mark = Mark(self.mark.tokens + self._pending_tokens, self.mark.documents + len(self._ends))
        self._pending, self._pending_tokens, self._ends = [], 0, []
        return self.mark

    def finish(self) -> TokenFile:
        """Flushes, and completes the folder."""
        self.flush()
        meta = {
            "tokens": self.mark.tokens,
            "documents": self.mark.documents,
            "vocab_size": self.vocab_size,
            "eod": self.eod,
            "dtype": self._dtype.name,
            "sha256": _sha256(self.folder / TOKENS),
        }
        write_json(self.folder / META, meta)
        return TokenFile(self.folder)


def _read_meta(path: Path) -> dict[str, Any]:
    meta = json.loads(path.read_bytes())
    names = ("tokens", "documents", "vocab_size")
    if not isinstance(meta, dict) or not all(isinstance(meta.get(name), int) for name in names):
        raise ValueError(f"{path.name} lacks {', '.join(names)}")
    return meta


def _sha256(path: Path) -> str:
    """SHA-256 of a file as it is on disk, including what an earlier process wrote."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _map(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    size = path.stat().st_size
    if size != count * dtype.itemsize:
        raise ValueError(f"{path.name}: {size} bytes instead of {count * dtype.itemsize}")
    return np.memmap(path, dtype, "r", shape=(count,)) if count else np.empty(0, dtype)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _append(path: Path, start: int, content: bytes) -> None:
    """Truncates a file to ``start`` bytes, appends ``content``, and syncs it to disk."""
    with _naming(path), open(path, "r+b" if path.exists() else "w+b") as file:
        file.truncate(start)
        file.seek(start)
        write_all(file, content)
        file.flush()
        os.fsync(file.fileno())


def write_all(file: IO[bytes], content: bytes) -> None:
    """Writes to a token file: the only function that does, so tests can interrupt it."""
    file.write(content)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds the file's name to an OSError: the error of a full disk does not name one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), error.filename or str(path)) from error

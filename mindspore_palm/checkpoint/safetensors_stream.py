"""Writes safetensors files block by block, so that no full tensor has to fit in memory. The library reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from mindspore_palm.errors import UserError

DTYPES = {"float32": "F32", "int32": "I32"}  # NumPy's name of a dtype: the format's
ALIGNMENT = 8  # bytes: alignment of the data in the format
READ_BYTES = 2**22  # bytes read at a time


def row_windows(shape: Sequence[int], itemsize: int, block_bytes: int) -> Iterator[tuple[slice, ...]]:
    """Windows that cover a tensor in blocks of rows, each of at most ``block_bytes`` or of one row."""
    rows = max(1, block_bytes // max(1, prod(shape[1:]) * itemsize))
    rest = tuple(slice(0, size) for size in shape[1:])
    for start in range(0, shape[0], rows):
        yield (slice(start, min(start + rows, shape[0])), *rest)


class Source(Protocol):
    """A tensor that is read by blocks, such as one stored on disk in shards."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the full tensor."""

    @property
    def dtype(self) -> np.dtype:
        """Dtype of its elements."""

    def blocks(self) -> Iterator[np.ndarray]:
        """Blocks of rows, in order."""


@dataclass(frozen=True)
class Digest:
    """Size and hash of a file's content."""

    size: int
    """Bytes."""
    sha256: str
    """Hexadecimal."""


class Digesting:
    """A file to write to that computes the digest of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash, self._size = file, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    @property
    def digest(self) -> Digest:
        """Digest of all bytes written so far."""
        return Digest(self._size, self._hash.hexdigest())


def digest_of(file: Path) -> Digest:
    """Digest of an existing file.

    Raises:
        OSError: it cannot be read.
    """
    sha256, size = hashlib.sha256(), 0
    with open(file, "rb") as stream:
        while chunk := stream.read(READ_BYTES):
            sha256.update(chunk)
            size += len(chunk)
    return Digest(size, sha256.hexdigest())


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a safetensors file, read by window."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: Any
    """NumPy dtype, or the format's own name of one that is never written here."""

    def read(self, window: tuple[slice, ...]) -> np.ndarray:
        """A window of the tensor.

        Raises:
            UserError: the file changed after it was opened.
        """
        try:
            with safe_open(self.file, framework="numpy") as content:
                return content.get_slice(self.name)[window]
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{self.file}: {self.name} cannot be read ({error})") from None


def file_tensors(file: Path) -> dict[str, FileTensor]:
    """The tensors of a safetensors file by name; their data is not read yet.

    Raises:
        UserError: the file is missing, truncated or of another format.
    """
    dtypes = {stored: np.dtype(name) for name, stored in DTYPES.items()}
    try:
        with safe_open(file, framework="numpy") as content:
            slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118 - not a dictionary
            return {
                name: FileTensor(file, name, tuple(part.get_shape()), dtypes.get(part.get_dtype(), part.get_dtype()))
                for name, part in slices.items()
            }
    except FileNotFoundError:
        raise UserError(f"there is no {file}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file}: this is not a complete safetensors file ({error})") from None


def write_tensors(
    file: IO[bytes] | Digesting, tensors: Mapping[str, np.ndarray | Source], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file: length of the header, header, data in the order of ``tensors``.

    Args:
        file: open for writing, at its start.
        tensors: float32 or int32 arrays, or their sources.
        metadata: text for the header.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
        header[name] = {
            "dtype": DTYPES[np.dtype(tensor.dtype).name],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for tensor in tensors.values():
        for block in _blocks(tensor):
            file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)


def _blocks(tensor: np.ndarray | Source) -> Iterable[np.ndarray]:
    return (tensor,) if isinstance(tensor, np.ndarray) else tensor.blocks()

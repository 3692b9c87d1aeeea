"""Safetensors files written piece by piece, so that no tensor need be in memory whole. The library reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from mindspore_palm.errors import UserError

SAFETENSORS_DTYPES = {"float32": "F32", "int32": "I32"}  # names of number types in NumPy and in the format
ALIGNMENT = 8  # bytes: where the format wants its data to begin
READ_BYTES = 2**22  # bytes that are read at a time


class Source(Protocol):
    """A tensor that may lie elsewhere: on disk, in slices."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def blocks(self) -> Iterator[np.ndarray]:
        """Its values in order, a run of rows at a time."""


@dataclass(frozen=True)
class Digest:
    """What a file must be for its content to be believed."""

    size: int
    """Bytes."""
    sha256: str
    """In hexadecimal digits."""


class Digesting:
    """A file to write to that knows the digest of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash, self._size = file, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    @property
    def digest(self) -> Digest:
        """Of all that was written so far."""
        return Digest(self._size, self._hash.hexdigest())


def digest_of(file: Path) -> Digest:
    """Of a file that is there.

    Raises:
        OSError: it cannot be read.
    """
    found, size = hashlib.sha256(), 0
    with open(file, "rb") as stream:
        while chunk := stream.read(READ_BYTES):
            found.update(chunk)
            size += len(chunk)
    return Digest(size, found.hexdigest())


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a safetensors file, read in windows."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype | str
    """The format's own name where it is no type that is written here."""

    def read(self, window: tuple[slice, ...]) -> np.ndarray:
        """A window of it.

        Raises:
            UserError: the file has changed since it was opened.
        """
        try:
            with safe_open(self.file, framework="numpy") as content:
                return content.get_slice(self.name)[window]
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{self.file}: {self.name} cannot be read ({error})") from None


def file_tensors(file: Path) -> dict[str, FileTensor]:
    """The tensors of a safetensors file by name; none of them is read yet.

    Raises:
        UserError: the file is missing, cut off or of another kind.
    """
    types = {kind: np.dtype(name) for name, kind in SAFETENSORS_DTYPES.items()}
    try:
        with safe_open(file, framework="numpy") as content:
            slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118 - not a dictionary
            return {
                name: FileTensor(file, name, tuple(part.get_shape()), types.get(part.get_dtype(), part.get_dtype()))
                for name, part in slices.items()
            }
    except FileNotFoundError:
        raise UserError(f"there is no {file}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file}: this is not a whole safetensors file ({error})") from None


def write_tensors(
    file: IO[bytes] | Digesting, tensors: Mapping[str, np.ndarray | Source], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file: length of the header, header, data, in the order of ``tensors``.

    Args:
        file: open for writing, at its start.
        tensors: float32 or int32 arrays, or where they come from.
        metadata: text that stands in the header.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[np.dtype(tensor.dtype).name],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for tensor in tensors.values():
        for block in _blocks(tensor):
            file.write(memoryview(np.ascontiguousarray(block).reshape(-1)).cast("B"))


def _blocks(tensor: np.ndarray | Source) -> Iterable[np.ndarray]:
    return (tensor,) if isinstance(tensor, np.ndarray) else tensor.blocks()

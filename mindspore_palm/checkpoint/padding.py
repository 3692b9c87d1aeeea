"""The rows that pad the vocabulary: another mesh may want another number of them, and a run resumes all the same.

No token has these rows. Their logits are masked, so their gradients are zero, and zeros are as good as what was there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol, TypeVar

import numpy as np

from mindspore_palm.parallel.placement import Window

TABLE = "embedding"  # the weight with a row for each token; its optimizer state has the name behind a prefix
BLOCK = 2**24  # bytes that are read at a time


class Tensor(Protocol):
    """A tensor of a file or a checkpoint."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""

    @property
    def dtype(self) -> np.dtype:
        """Of its numbers."""

    def read(self, window: Window | None = None) -> np.ndarray:
        """A window of it, or all."""


Stored = TypeVar("Stored", bound=Tensor)


@dataclass(frozen=True)
class Repadded:
    """A tensor with another number of rows at its end: cut off, or zeros."""

    tensor: Tensor
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """Of its numbers."""
        return self.tensor.dtype

    def read(self, window: Window | None = None) -> np.ndarray:
        """A window of it, or all."""
        rows, *rest = window or tuple(slice(0, size) for size in self.shape)
        out = np.zeros([part.stop - part.start for part in (rows, *rest)], self.dtype)
        stop = min(rows.stop, self.tensor.shape[0])
        if stop > rows.start:
            out[: stop - rows.start] = self.tensor.read((slice(rows.start, stop), *rest))
        return out

    def blocks(self) -> Iterator[np.ndarray]:
        """Runs of rows, in order."""
        count = max(1, BLOCK // max(1, prod(self.shape[1:]) * self.dtype.itemsize))
        rest = tuple(slice(0, size) for size in self.shape[1:])
        for start in range(0, self.shape[0], count):
            yield self.read((slice(start, min(start + count, self.shape[0])), *rest))


def with_rows(name: str, tensor: Stored, shape: Sequence[int]) -> Stored | Repadded:
    """The tensor as a network of the same vocabulary wants it, if padding alone differs; or else as it is."""
    wanted = tuple(shape)
    padded = name.rpartition(".")[2] == TABLE and tensor.shape[1:] == wanted[1:] and len(tensor.shape) == len(wanted)
    return Repadded(tensor, wanted) if padded and tensor.shape != wanted else tensor

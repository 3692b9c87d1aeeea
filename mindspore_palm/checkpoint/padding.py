"""Padding rows of the vocabulary: their number depends on the mesh, and a run resumes on a mesh that needs another one.

No token uses these rows. Their logits are masked, so their gradients are zero, and zeros may replace their values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from mindspore_palm.checkpoint.safetensors_stream import row_windows
from mindspore_palm.parallel.placement import Window

EMBEDDING = "embedding"  # the weight with a row per token; its optimizer state has this name with a prefix
BLOCK_BYTES = 2**24  # bytes read at a time


class Tensor(Protocol):
    """A tensor of a file or a checkpoint."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the full tensor."""

    @property
    def dtype(self) -> np.dtype:
        """Dtype of its elements."""

    def read(self, window: Window) -> np.ndarray:
        """A window of the tensor."""


AnyTensor = TypeVar("AnyTensor", bound=Tensor)


@dataclass(frozen=True)
class Repadded:
    """A tensor with rows removed at its end, or rows of zeros added."""

    tensor: Tensor
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """Dtype of its elements."""
        return self.tensor.dtype

    def read(self, window: Window | None = None) -> np.ndarray:
        """A window of the tensor, or all of it."""
        rows, *rest = window or tuple(slice(0, size) for size in self.shape)
        out = np.zeros([part.stop - part.start for part in (rows, *rest)], self.dtype)
        stop = min(rows.stop, self.tensor.shape[0])
        if stop > rows.start:
            out[: stop - rows.start] = self.tensor.read((slice(rows.start, stop), *rest))
        return out

    def blocks(self) -> Iterator[np.ndarray]:
        """Blocks of rows, in order."""
        for window in row_windows(self.shape, self.dtype.itemsize, BLOCK_BYTES):
            yield self.read(window)


def with_padding(name: str, tensor: AnyTensor, shape: Sequence[int]) -> AnyTensor | Repadded:
    """The tensor repadded to a shape if only the padding rows differ, or else as it is."""
    target = tuple(shape)
    same_rows = tensor.shape[1:] == target[1:] and len(tensor.shape) == len(target)
    repaddable = name.rpartition(".")[2] == EMBEDDING and same_rows
    return Repadded(tensor, target) if repaddable and tensor.shape != target else tensor

"""Which slice of a weight a device holds: the table's cuts, and full sharding of the first axis beyond them.

MindSpore's compiler decides the same from strategies and settings; the tests compare the two. Knowing it beforehand
lets a device draw its slice of the initial weights alone, and lets the layout be printed and checked without compiling.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from mindspore_palm.parallel.axes import Axes, Layout

Window = tuple[slice, ...]
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Placement:
    """Where a weight lies on a layout."""

    name: str
    shape: tuple[int, ...]
    """Of the whole weight."""
    axes: Axes
    """Logical axis of each dimension."""
    layout: Layout
    fully_sharded: bool = True
    """Whether the first dimension may be cut further, over data."""

    @property
    def pieces(self) -> tuple[int, ...]:
        """Into how many pieces the table cuts each dimension."""
        return self.layout.strategy(self.axes)[0]

    @property
    def data_shards(self) -> int:
        """Into how many slices the first dimension is cut beyond the table; 1 where that is not even (MS-08)."""
        count, rows = self.layout.weight_shards, self.shape[0] // self.pieces[0]
        holders = self.layout.devices // prod(self.pieces)
        return count if self.fully_sharded and rows % count == 0 and holders % count == 0 else 1

    @property
    def shard_shape(self) -> tuple[int, ...]:
        """Shape of what one device holds."""
        rows, *rest = (size // count for size, count in zip(self.shape, self.pieces, strict=True))
        return (rows // self.data_shards, *rest)

    @property
    def shard_bytes(self) -> int:
        """Bytes of what one device holds, in float32."""
        return FLOAT * prod(self.shard_shape)

    @property
    def replicas(self) -> int:
        """How many devices hold the same slice."""
        return self.layout.devices // (prod(self.pieces) * self.data_shards)

    def is_first(self, rank: int) -> bool:
        """Whether a rank is the first of those that hold its slice."""
        return self._same_piece(rank).index(rank) < self.data_shards

    def window(self, rank: int) -> Window:
        """What of the whole weight a rank holds."""
        mesh = self.layout.mesh
        cut = [self.layout.mesh_axes(axis) for axis in self.axes]
        starts = [
            mesh.index(rank, axes) * (size // count)
            for axes, size, count in zip(cut, self.shape, self.pieces, strict=True)
        ]
        # Full sharding: the ranks that hold the same piece, in order, in runs of ``data_shards``
        starts[0] += self._same_piece(rank).index(rank) % self.data_shards * self.shard_shape[0]
        return tuple(slice(start, start + size) for start, size in zip(starts, self.shard_shape, strict=True))

    def _same_piece(self, rank: int) -> list[int]:
        """The ranks to which the table gives the same piece, before full sharding."""
        cut = {name for axis in self.axes for name in self.layout.mesh_axes(axis)}
        return self.layout.mesh.group(rank, set(self.layout.mesh.sizes) - cut)

"""Placement of a weight: the shard that a device holds, by the table and by full sharding of the first axis beyond it.

MindSpore's compiler decides the same from strategies and settings; the tests compare the two. Computed in advance, it
lets a device draw only its own shard of the initial weights, and lets the layout be printed and checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from mindspore_palm.parallel.axes import Axes, Layout
from mindspore_palm.parallel.mesh import STAGE

Window = tuple[slice, ...]
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Placement:
    """How a weight is sharded in a layout, over the devices of its stage."""

    name: str
    shape: tuple[int, ...]
    """Shape of the full weight."""
    axes: Axes
    """Logical axis of each dimension."""
    layout: Layout
    fully_sharded: bool = True
    """Whether the first dimension may be sharded further, over data."""
    parts: int = 1
    """Equal parts of the last dimension, each of which is sharded by itself: keys and values of multi-head attention. A
    device's shard is its window of each part, joined along that dimension."""
    stage: int = 0
    """The stage whose devices hold it."""

    @cached_property
    def table_shards(self) -> tuple[int, ...]:
        """The number of shards of each dimension by the table alone."""
        return self.layout.strategy(self.axes)[0]

    @cached_property
    def data_shards(self) -> int:
        """The number of shards of the first dimension beyond the table; 1 where it does not divide (MS-08)."""
        count, rows = self.layout.weight_shards, self.shape[0] // self.table_shards[0]
        holders = self.layout.mesh.stage_devices // prod(self.table_shards)
        return count if self.fully_sharded and rows % count == 0 and holders % count == 0 else 1

    @cached_property
    def shard_shape(self) -> tuple[int, ...]:
        """Shape of the shard that one device holds."""
        rows, *rest = (size // count for size, count in zip(self.shape, self.table_shards, strict=True))
        return (rows // self.data_shards, *rest)

    @property
    def window_shape(self) -> tuple[int, ...]:
        """Shape of one part's window."""
        *rest, last = self.shard_shape
        return (*rest, last // self.parts)

    @property
    def shard_bytes(self) -> int:
        """Bytes of the shard that one device holds, in float32."""
        return FLOAT * prod(self.shard_shape)

    @property
    def replicas(self) -> int:
        """The number of devices that hold the same shard."""
        return self.layout.mesh.stage_devices // (prod(self.table_shards) * self.data_shards)

    def holds(self, rank: int) -> bool:
        """Whether a rank holds a shard: whether it belongs to the stage of the weight."""
        return self.layout.mesh.stage(rank) == self.stage

    def is_first(self, rank: int) -> bool:
        """Whether a rank is the first of the replicas of its shard."""
        return self.holds(rank) and self._same_table_shard(rank).index(rank) < self.data_shards

    def window(self, rank: int, part: int = 0) -> Window:
        """The window of the full weight that a rank holds, or would hold in the weight's stage: of one of its parts."""
        mesh = self.layout.mesh
        mesh_axes = [self.layout.mesh_axes(axis) for axis in self.axes]
        # before full sharding, which divides the rows further
        table_window = [self.shape[0] // self.table_shards[0], *self.window_shape[1:]]
        starts = [mesh.index(rank, axes) * size for axes, size in zip(mesh_axes, table_window, strict=True)]
        starts[-1] += part * (self.shape[-1] // self.parts)
        # Full sharding: consecutive runs of ``data_shards`` ranks share what the table gives to all of them
        starts[0] += self._same_table_shard(rank).index(rank) % self.data_shards * self.shard_shape[0]
        return tuple(slice(start, start + size) for start, size in zip(starts, self.window_shape, strict=True))

    def windows(self, rank: int) -> tuple[Window, ...]:
        """The windows of all parts."""
        return tuple(self.window(rank, part) for part in range(self.parts))

    def _same_table_shard(self, rank: int) -> list[int]:
        """The ranks that have the same shard by the table alone, in ascending order."""
        sharded = {name for axis in self.axes for name in self.layout.mesh_axes(axis)}
        return self.layout.mesh.group(rank, set(self.layout.mesh.sizes) - sharded - {STAGE})

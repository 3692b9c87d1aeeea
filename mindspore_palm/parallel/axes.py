"""The one table from logical axes to mesh axes, and ``shard``, by which every op names its axes once.

A Cell writes ``shard(ops.MatMul(), ("tokens", "embed"), ("embed", "heads"))`` and never mentions a mesh; the table
gives the strategy. On one device it gives nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TypeVar

from mindspore_palm.parallel.mesh import DATA, MODEL, POD, Mesh

Axes = tuple[str, ...]
Table = Mapping[str, Axes]
Op = TypeVar("Op")

PALM_AXES: Table = {
    "batch": (POD, DATA),  # sequences
    "tokens": (POD, DATA),  # batch and length in one axis
    "length": (),  # positions: as queries
    "context": (),  # positions: as keys
    "embed": (),  # d_model
    "heads": (MODEL,),  # whole heads, with the mlp columns that are stored with them
    "kv": (),  # the one key and value head is on every model rank
    "per_head": (),  # inside a head
    "vocab": (MODEL,),
    "one": (),  # an axis of length one
}
"""PaLM's layout (section 4 of the paper): activations over pod x data, heads and vocabulary over model."""

EVERYWHERE = (POD, DATA, MODEL)
DATA_AXES: Table = {**PALM_AXES, "batch": EVERYWHERE, "tokens": EVERYWHERE, "heads": (), "vocab": ()}
"""Data parallel only: every device has sequences of its own, no product is cut."""
MODEL_AXES: Table = {**PALM_AXES, "batch": (), "tokens": (), "heads": EVERYWHERE, "vocab": EVERYWHERE}
"""Model parallel only: every device works on every sequence, with its own heads and vocabulary. Decoding is always so:
a batch may be one sequence, and a cache of one head a layer is small enough to be on all devices."""

TABLES: Mapping[str, Table] = {"palm": PALM_AXES, "data": DATA_AXES, "model": MODEL_AXES}


@dataclass(frozen=True)
class Layout:
    """A mesh, the table that maps logical axes onto it, and how far weights are sharded beyond the table."""

    mesh: Mesh = field(default_factory=Mesh)
    table: Table = field(default_factory=lambda: PALM_AXES)
    shard_weights: str = "pod"
    """off, pod (over the data axis, as PaLM) or all (over pods, too)."""
    recompute: str = "none"
    """What the backward pass computes again: none, attention or block."""
    compute_dtype: str = "float32"
    """Type of activations and of products inside blocks; weights, norms, softmax, logits and loss are float32."""
    target: str = "CPU"
    """Kind of device that networks are compiled for."""

    def mesh_axes(self, axis: str) -> Axes:
        """The mesh axes over which a logical axis is cut.

        Raises:
            KeyError: the axis is not in the table.
        """
        if axis not in self.table:
            there = ", ".join(self.table)
            raise KeyError(f"no logical axis is called {axis!r}; declare it in the table, beside {there}")
        return self.table[axis]

    def shards(self, axis: str) -> int:
        """Into how many pieces a logical axis is cut."""
        return prod(self.mesh.sizes[name] for name in self.mesh_axes(axis))

    def strategy(self, *inputs: Axes) -> tuple[tuple[int, ...], ...]:
        """MindSpore's strategy for an op: for every input, the number of pieces of each dimension."""
        return tuple(tuple(self.shards(axis) for axis in axes) for axes in inputs)

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return self.mesh.devices

    @property
    def weight_shards(self) -> int:
        """Into how many slices the first axis of a weight is cut, beyond the table: 1 for weights that stay whole."""
        if self.shard_weights == "off":
            return 1
        over = [name for name in self.mesh_axes("tokens") if self.shard_weights == "all" or name != POD]
        return prod(self.mesh.sizes[name] for name in over)

    def rows(self, rank: int, count: int) -> slice:
        """Which of ``count`` sequences a rank brings."""
        share = count // self.shards("batch")
        first = self.mesh.index(rank, self.mesh_axes("batch")) * share
        return slice(first, first + share)


_current = Layout()


def current_layout() -> Layout:
    """The layout that Cells are being built for."""
    return _current


@contextlib.contextmanager
def layout(new: Layout) -> Iterator[Layout]:
    """Builds the Cells of a ``with`` block for another layout."""
    global _current
    before, _current = _current, new
    try:
        yield new
    finally:
        _current = before


def shard(op: Op, *inputs: Axes) -> Op:
    """Declares the logical axes of each input of a Primitive; its strategy follows from the current layout (MS-52).

    Raises:
        KeyError: an axis is not in the table; also on one device, so that a laptop finds it.
    """
    strategy = _current.strategy(*inputs)
    return op.shard(strategy) if _current.devices > 1 else op

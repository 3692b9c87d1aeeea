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

Axes = tuple[str, ...]
Op = TypeVar("Op")

PALM_AXES: Mapping[str, Axes] = {
    "batch": ("pod", "data"),  # sequences
    "tokens": ("pod", "data"),  # batch and length in one axis
    "length": (),  # positions: as queries
    "context": (),  # positions: as keys
    "embed": (),  # d_model
    "heads": ("model",),  # whole heads, with the mlp columns that are stored with them
    "kv": (),  # the one key and value head is on every model rank
    "per_head": (),  # inside a head
    "vocab": ("model",),
    "one": (),  # an axis of length one
}
"""PaLM's layout (section 4 of the paper): activations over pod x data, heads and vocabulary over model."""


@dataclass(frozen=True)
class Layout:
    """Sizes of the mesh axes and the table that maps logical axes onto them."""

    mesh: Mapping[str, int] = field(default_factory=lambda: {"pod": 1, "data": 1, "model": 1})
    table: Mapping[str, Axes] = field(default_factory=lambda: PALM_AXES)

    def shards(self, axis: str) -> int:
        """Into how many pieces a logical axis is cut.

        Raises:
            KeyError: the axis is not in the table.
        """
        if axis not in self.table:
            there = ", ".join(self.table)
            raise KeyError(f"no logical axis is called {axis!r}; declare it in the table, beside {there}")
        return prod(self.mesh[name] for name in self.table[axis])

    def strategy(self, *inputs: Axes) -> tuple[tuple[int, ...], ...]:
        """MindSpore's strategy for an op: for every input, the number of pieces of each dimension."""
        return tuple(tuple(self.shards(axis) for axis in axes) for axes in inputs)

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return prod(self.mesh.values())


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
    """Declares the logical axes of each input of a Primitive; its strategy follows from the current layout.

    Raises:
        KeyError: an axis is not in the table; also on one device, so that a laptop finds it.
    """
    strategy = _current.strategy(*inputs)
    return op.shard(strategy) if _current.devices > 1 else op

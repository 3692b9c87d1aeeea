"""The one table from logical axes to mesh axes, and ``shard``, with which every op declares its axes once.

A Cell writes ``shard(ops.MatMul(), ("tokens", "embed"), ("embed", "heads"))`` and never mentions a mesh; the strategy
follows from the table. On one device there is none.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import TypeVar

from mindspore.parallel import Layout as DeviceLayout

from mindspore_palm.palm_config import Recompute
from mindspore_palm.parallel.mesh import DATA, MODEL, POD, Mesh

Axes = tuple[str, ...]
Table = Mapping[str, Axes]
Op = TypeVar("Op")

PALM_AXES: Table = {
    "batch": (POD, DATA),  # sequences
    "tokens": (POD, DATA),  # batch and length, flattened into one axis
    "length": (),  # positions of queries
    "context": (),  # positions of keys
    "embed": (),  # d_model
    "heads": (MODEL,),  # by head, with the mlp columns that are stored beside it
    "kv": (),  # the single key and value head is replicated on all model ranks
    "per_head": (),  # head_dim
    "vocab": (MODEL,),
    "one": (),  # axes of length one
}
"""PaLM's layout (section 4 of the paper): activations over pod x data, heads and vocabulary over model."""

EVERYWHERE = (POD, DATA, MODEL)
DATA_AXES: Table = {**PALM_AXES, "batch": EVERYWHERE, "tokens": EVERYWHERE, "heads": (), "vocab": ()}
"""Data parallelism only: every device has its own sequences, and no matmul is sharded."""
MODEL_AXES: Table = {**PALM_AXES, "batch": (), "tokens": (), "heads": EVERYWHERE, "vocab": EVERYWHERE}
"""Model parallelism only: every device computes every sequence, with its own heads and vocabulary. Decoding always uses
it: a batch may be one sequence, and a cache of one head per layer is small enough to be replicated."""

PER_MICRO_BATCH, PER_STEP, PODS_PER_STEP = "per_micro_batch", "per_step", "pods_per_step"
ZERO_BUBBLE_V = "zero_bubble_v"
TABLES: Mapping[str, Table] = {"palm": PALM_AXES, "data": DATA_AXES, "model": MODEL_AXES}


@dataclass(frozen=True)
class Layout:
    """A mesh, the table that maps logical axes onto it, and how far weights are sharded beyond the table."""

    mesh: Mesh = field(default_factory=Mesh)
    table: Table = field(default_factory=lambda: PALM_AXES)
    shard_weights: str = "pod"
    """off, pod (over the data axis, as in PaLM) or all (also over pods)."""
    recompute: Recompute = "none"
    """Activations that the backward pass recomputes: none, attention or block."""
    compute_dtype: str = "float32"
    """dtype of activations and matmuls inside blocks; weights, norms, softmax, logits and loss are float32."""
    target: str = "CPU"
    """Device type that networks are compiled for."""
    stage_layers: tuple[int, ...] = ()
    """Layers of each run, in order; empty without a pipeline. Stage ``i % stages`` computes run i; in zero_bubble_v,
    the second half of the runs goes back from the last stage to the first."""
    schedule: str = "1f1b"
    """Order of the forward and backward passes of micro-batches in a pipeline."""
    reduce_gradients: str = PER_MICRO_BATCH
    """How often gradients are reduced over data and pods: as in ``ParallelConfig``, but for auto."""
    reduce_dtype: str = "float32"
    """dtype in which gradients of kernels are reduced."""
    planned: bool = False
    """Whether it is only partitioned or planned for, and nothing is computed."""

    def mesh_axes(self, axis: str) -> Axes:
        """The mesh axes over which a logical axis is sharded.

        Raises:
            KeyError: the axis is not in the table.
        """
        if axis not in self.table:
            declared = ", ".join(self.table)
            raise KeyError(f"no logical axis is called {axis!r}; declare it in the table, beside {declared}")
        return self.table[axis]

    def shards(self, axis: str) -> int:
        """The number of shards of a logical axis."""
        return prod(self.mesh.sizes[name] for name in self.mesh_axes(axis))

    def strategy(self, *inputs: Axes) -> tuple[tuple[int, ...], ...]:
        """MindSpore's strategy for an op: for each input, the number of shards of each dimension."""
        return tuple(tuple(self.shards(axis) for axis in axes) for axes in inputs)

    def stage(self, layer: int) -> int:
        """The stage that computes a layer; 0 without a pipeline."""
        turn, stage = divmod(self.run(layer), self.mesh.stages)
        back = self.schedule == ZERO_BUBBLE_V and turn % 2
        return self.mesh.stages - 1 - stage if back else stage

    def run(self, layer: int) -> int:
        """The run of layers that a layer is in; 0 without a pipeline."""
        return bisect_right(list(accumulate(self.stage_layers))[:-1], layer)

    @property
    def unrolled(self) -> bool:
        """Whether one graph has all micro-batches of a step, so that gradients need not be reduced after each."""
        return self.mesh.stages > 1 or self.reduce_gradients != PER_MICRO_BATCH

    @property
    def devices(self) -> int:
        """The number of devices of the mesh."""
        return self.mesh.devices

    @property
    def weight_shards(self) -> int:
        """The number of shards of a weight's first axis beyond the table; 1 without full sharding."""
        if self.shard_weights == "off":
            return 1
        over = [name for name in self.mesh_axes("tokens") if self.shard_weights == "all" or name != POD]
        return prod(self.mesh.sizes[name] for name in over)

    def rows(self, rank: int, count: int) -> slice:
        """The rows of a batch of ``count`` sequences that a rank feeds."""
        per_shard = count // self.shards("batch")
        first = self.mesh.index(rank, self.mesh_axes("batch")) * per_shard
        return slice(first, first + per_shard)


_current = Layout()


def current_layout() -> Layout:
    """The layout that Cells are built for."""
    return _current


@contextlib.contextmanager
def layout(new: Layout) -> Iterator[Layout]:
    """Builds the Cells of a ``with`` block for ``new``."""
    global _current
    before, _current = _current, new
    try:
        yield new
    finally:
        _current = before


def shard(op: Op, *inputs: Axes) -> Op:
    """Declares the logical axes of each input of a Primitive; its strategy follows from the current layout (MS-52).

    Raises:
        KeyError: an axis is not in the table. Also on one device, so that the error shows on a laptop.
    """
    strategy = _current.strategy(*inputs)
    return op.shard(strategy) if _current.devices > 1 else op  # type: ignore[attr-defined]


def shard_weight(op: Op, axes: Axes) -> Op:
    """Declares the logical axes of the input of a Primitive that takes a weight alone, as ``shard`` does.

    MS-58: a strategy with fewer shards than devices is laid out over the slowest mesh axes. That of a weight has no
    shards over data, so shards over model would be put there. A Layout names the mesh axes instead.

    Raises:
        KeyError: an axis is not in the table.
    """
    mesh_axes = [_current.mesh_axes(axis) for axis in axes]
    if _current.devices == 1:
        return op
    named = tuple(names[0] if len(names) == 1 else names or "None" for names in mesh_axes)
    sizes = tuple(_current.mesh.sizes[name] for name in EVERYWHERE)
    return op.shard((DeviceLayout(sizes, EVERYWHERE)(*named),))  # type: ignore[attr-defined]

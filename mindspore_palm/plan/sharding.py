"""A layout as a table to read: every weight, its axes, its slice, its bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mindspore_palm.config import Settings
from mindspore_palm.model.weights import placements as placements_on
from mindspore_palm.parallel.axes import Layout
from mindspore_palm.parallel.check import check_layout, layout_of
from mindspore_palm.parallel.placement import Placement
from mindspore_palm.tables import table


def print_layout(settings: Settings) -> None:
    """Prints the layout that settings ask for.

    Raises:
        UserError: behind the table, what does not fit.
    """
    layout = layout_of(settings, "Ascend" if settings.train.device == "Ascend" else "GPU")
    print(describe_layout(layout, placements_on(settings.model, layout)))
    check_layout(settings, layout, placements_on)


def describe_layout(layout: Layout, placements: Sequence[Placement]) -> str:
    """Every weight with logical and mesh axes, whole and slice shape, bytes a device, copies; equal layers once."""
    head = ("weight", "logical axes", "mesh axes", "whole", "on a device", "MB a device", "copies")
    rows = []
    for names, placement in _alike(placements):
        rows.append(
            (
                names,
                ", ".join(placement.axes),
                ", ".join(_mesh_axes(placement)),
                " x ".join(f"{size:,}" for size in placement.shape),
                " x ".join(f"{size:,}" for size in placement.shard_shape),
                f"{placement.shard_bytes / 1e6:,.3f}",
                f"{placement.replicas:,}",
            )
        )
    total = sum(p.shard_bytes for p in placements)
    whole = sum(p.shard_bytes * layout.devices / p.replicas for p in placements)
    return "\n".join(
        [
            f"{layout.mesh} = {layout.devices:,} devices; weights in slices over {layout.weight_shards} data ranks",
            table(head, rows),
            f"float32 weights: {total / 1e6:,.1f} MB on a device, {whole / 1e9:,.1f} GB in all",
        ]
    )


def _mesh_axes(placement: Placement) -> list[str]:
    """Mesh axes of each dimension; full sharding is the last of the first dimension."""
    axes = [" x ".join(placement.layout.mesh_axes(axis)) or "-" for axis in placement.axes]
    if placement.data_shards > 1:
        # a weight that is whole on all model ranks is sharded over runs of ranks that include them
        own = f"data({placement.data_shards})"
        axes[0] = own if axes[0] == "-" else f"{axes[0]} x {own}"
    return axes


def _alike(placements: Sequence[Placement]) -> list[tuple[str, Placement]]:
    """Weights of blocks that lie alike, under one name such as ``blocks.0-117.kv``."""
    groups: dict[tuple, list[Placement]] = {}
    for placement in placements:
        kind = re.sub(r"^blocks\.\d+\.", "", placement.name)
        groups.setdefault((kind, placement.shard_shape), []).append(placement)
    named = []
    for (kind, _), members in groups.items():
        numbers = [int(p.name.split(".")[1]) for p in members if p.name.startswith("blocks.")]
        span = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else "".join(map(str, numbers))
        named.append((f"blocks.{span}.{kind}" if numbers else kind, members[0]))
    return named

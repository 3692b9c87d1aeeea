"""A layout as a table: every weight with its axes, its shard and its bytes."""

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
    """Prints the layout of settings.

    Raises:
        UserError: after the table, if something does not fit.
    """
    layout = layout_of(settings, "Ascend" if settings.train.device == "Ascend" else "GPU", planned=True)
    print(describe_layout(layout, placements_on(settings.model, layout)))
    check_layout(settings, layout, placements_on)


def describe_layout(layout: Layout, placements: Sequence[Placement]) -> str:
    """Logical and mesh axes, full and shard shape, bytes per device and replicas of every weight; equal layers once."""
    stages = layout.mesh.stages
    head = ["weight", "logical axes", "mesh axes", "shape", "shard", "MB per device", "replicas"]
    head += ["stage"] if stages > 1 else []
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
                *([str(placement.stage)] if stages > 1 else []),
            )
        )
    totals = [sum(p.shard_bytes for p in placements if p.stage == stage) for stage in range(stages)]
    unsharded = sum(p.shard_bytes * layout.mesh.stage_devices / p.replicas for p in placements)
    per_device = " | ".join(f"{total / 1e6:,.1f}" for total in totals)
    of_stages = f" of stages 0 to {stages - 1}" if stages > 1 else ""
    return "\n".join(
        [
            f"{layout.mesh} = {layout.devices:,} devices; weights fully sharded over {layout.weight_shards} data ranks",
            table(head, rows),
            f"float32 weights: {per_device} MB per device{of_stages}, {unsharded / 1e9:,.1f} GB in total",
        ]
    )


def _mesh_axes(placement: Placement) -> list[str]:
    """Mesh axes of each dimension; full sharding comes last in the first dimension."""
    axes = [" x ".join(placement.layout.mesh_axes(axis)) or "-" for axis in placement.axes]
    if placement.data_shards > 1:
        # a weight that is replicated over model is fully sharded over runs of ranks that include the model ranks
        data = f"data({placement.data_shards})"
        axes[0] = data if axes[0] == "-" else f"{axes[0]} x {data}"
    return axes


def _alike(placements: Sequence[Placement]) -> list[tuple[str, Placement]]:
    """One weight for all layers with equal placement, under a name such as ``blocks.0-117.kv``."""
    groups: dict[tuple, list[Placement]] = {}
    for placement in placements:
        role = re.sub(r"^blocks\.\d+\.", "", placement.name)
        groups.setdefault((role, placement.shard_shape, placement.stage), []).append(placement)
    named = []
    for (role, *_), members in groups.items():
        layers = [int(p.name.split(".")[1]) for p in members if p.name.startswith("blocks.")]
        span = f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else "".join(map(str, layers))
        named.append((f"blocks.{span}.{role}" if layers else role, members[0]))
    return named

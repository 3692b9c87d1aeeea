"""A dry run as text and as JSON."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import mindspore

from mindspore_palm.config import Settings
from mindspore_palm.cost.workload import Workload
from mindspore_palm.dry_run.compile import DryRun
from mindspore_palm.dry_run.graph import Shard
from mindspore_palm.dry_run.ledger import BYTES, ORDER, Collective, per_step, show_axes, show_ledger
from mindspore_palm.files import write_json
from mindspore_palm.parallel.axes import Layout
from mindspore_palm.parallel.check import layout_of
from mindspore_palm.tables import listing, table

UNROLLED = {"update": "a graph of its own, which is not compiled here: all-reduces of a few numbers per weight"}


def describe_dry_run(run: DryRun, settings: Settings, target: str, rank: int) -> str:
    """Text of a dry run: what was compiled, shards of weights and state, and collectives by axis and by kind."""
    layout = layout_of(settings, target, planned=True)
    method = (
        "all of them compiled"
        if run.compiled == (run.layers,)
        else f"extrapolated from {run.compiled[0]} and {run.compiled[1]}"
    )
    micro_batches, passes = _micro_batches(settings, target, layout)
    counts, chain = per_step(run.ledger.counts, passes), per_step(run.ledger.chain, passes)
    updates = sum(count for kind, count in run.ledger.chain.items() if kind.part == "update")
    head = {
        "graph": f"MindSpore {mindspore.__version__}, semi-auto parallel, for {target} in {layout.compute_dtype}",
        "mesh": f"{layout.mesh}, rank {rank:,} of {layout.devices:,}",
        "layers": f"{run.layers}, {method}",
        "state": f"{run.state_bytes() / 1e9:,.3f} GB of weights and optimizer state per device",
        "collectives": f"{sum(counts.values()):,} per step"
        + (f" of {micro_batches:,} micro-batches" if micro_batches > 1 else ""),
        **(UNROLLED if layout.unrolled else {"chain": _chain(chain, updates)}),
        "compiled": f"in {run.seconds:.1f} s, with {run.memory / 1e9:.2f} GB",
    }
    return "\n\n".join([listing(head), _shards(run.shards), show_axes(counts), show_ledger(counts)])


def _chain(chain: Counter[Collective], updates: int) -> str:
    return f"{sum(chain.values()):,} of them wait for each other ({updates:,} of these in the update)"


def _micro_batches(settings: Settings, target: str, layout: Layout) -> tuple[int, int]:
    """Micro-batches per step, and how often a step executes the graph: an unrolled one has all of them."""
    count = Workload.of(settings, target).micro_batches
    return count, 1 if layout.unrolled else count


def write_dry_run(run: DryRun, settings: Settings, target: str, rank: int, file: Path) -> None:
    """Writes a dry run as JSON.

    Raises:
        OSError: the file could not be written.
    """
    layout = layout_of(settings, target, planned=True)
    micro_batches, passes = _micro_batches(settings, target, layout)
    counts, chain = per_step(run.ledger.counts, passes), per_step(run.ledger.chain, passes)
    write_json(
        file,
        {
            "mindspore": mindspore.__version__,
            "target": target,
            "compute_dtype": layout.compute_dtype,
            "mesh": dict(layout.mesh.sizes),
            "passes": micro_batches,
            "rank": rank,
            "layers": run.layers,
            "compiled_layers": list(run.compiled),
            "seconds": run.seconds,
            "memory_bytes": run.memory,
            "state_bytes": run.state_bytes(),
            "slices": [asdict(s) | {"bytes": BYTES[s.dtype] * prod(s.shape)} for s in run.shards],
            "collectives": [_as_json(kind, count) for kind, count in _sorted(counts)],
            "longest_chain": [_as_json(kind, count) for kind, count in _sorted(chain)],
        },
    )


def _sorted(ledger: dict[Collective, int]) -> list[tuple[Collective, int]]:
    return sorted(ledger.items(), key=lambda item: (ORDER[item[0].part], item[0]))


def _as_json(kind: Collective, count: int) -> dict[str, Any]:
    return asdict(kind) | {"count": count, "bytes": kind.bytes}


def _shards(shards: tuple[Shard, ...]) -> str:
    """A table with one line for the equal tensors of all layers."""
    groups: dict[tuple[str, tuple[int, ...], str], list[Shard]] = {}
    for shard in shards:
        role = re.sub(r"blocks\.\d+\.", "", shard.name)
        groups.setdefault((role, shard.shape, shard.dtype), []).append(shard)
    rows = [
        (role, f"{len(members):,}", " x ".join(f"{n:,}" for n in shape), dtype.lower(), f"{_bytes(members) / 1e6:,.3f}")
        for (role, shape, dtype), members in groups.items()
    ]
    return table(("weight or state", "count", "shard", "dtype", "total MB"), rows)


def _bytes(members: list[Shard]) -> int:
    return sum(BYTES[s.dtype] * prod(s.shape) for s in members)

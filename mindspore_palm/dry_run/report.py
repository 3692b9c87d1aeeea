"""A dry run as text and as JSON."""

from __future__ import annotations

import re
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import mindspore

from mindspore_palm.config import Settings
from mindspore_palm.cost.workload import Workload
from mindspore_palm.dry_run.compile import DryRun
from mindspore_palm.dry_run.graph import Slice
from mindspore_palm.dry_run.ledger import BYTES, ORDER, Collective, of_a_step, show_axes, show_ledger
from mindspore_palm.files import write_json
from mindspore_palm.parallel.check import layout_of
from mindspore_palm.tables import listing, table


def describe_dry_run(run: DryRun, settings: Settings, target: str, rank: int) -> str:
    """What was compiled, the slices of weights and state, and the exchanges of a step, by kind and by axis."""
    place = layout_of(settings, target)
    way = (
        "all of them compiled"
        if run.compiled == (run.layers,)
        else f"extrapolated from {run.compiled[0]} and {run.compiled[1]}"
    )
    passes = Workload.of(settings, target).passes
    counts, chain = of_a_step(run.ledger.counts, passes), sum(of_a_step(run.ledger.chain, passes).values())
    updates = sum(count for kind, count in run.ledger.chain.items() if kind.part == "update")
    head = {
        "graph": f"MindSpore {mindspore.__version__}, semi-auto parallel, for {target} in {place.compute_dtype}",
        "mesh": f"{place.mesh}, rank {rank:,} of {place.devices:,}",
        "layers": f"{run.layers}, {way}",
        "state": f"{run.state_bytes() / 1e9:,.3f} GB of weights and optimizer state on the device",
        "exchanges": f"{sum(counts.values()):,} collectives a step" + (f" of {passes:,} passes" if passes > 1 else ""),
        "chain": f"{chain:,} of them wait for each other ({updates:,} of these in the update)",
        "compiled": f"in {run.seconds:.1f} s, in {run.memory / 1e9:.2f} GB",
    }
    return "\n\n".join([listing(head), _slices(run.slices), show_axes(counts), show_ledger(counts)])


def write_dry_run(run: DryRun, settings: Settings, target: str, rank: int, file: Path) -> None:
    """Writes all of it as JSON.

    Raises:
        OSError: the file could not be written.
    """
    place = layout_of(settings, target)
    passes = Workload.of(settings, target).passes
    write_json(
        file,
        {
            "mindspore": mindspore.__version__,
            "target": target,
            "compute_dtype": place.compute_dtype,
            "mesh": dict(place.mesh.sizes),
            "passes": passes,
            "rank": rank,
            "layers": run.layers,
            "compiled_layers": list(run.compiled),
            "seconds": run.seconds,
            "memory_bytes": run.memory,
            "state_bytes": run.state_bytes(),
            "slices": [asdict(s) | {"bytes": BYTES[s.dtype] * prod(s.shape)} for s in run.slices],
            "collectives": [_as_json(kind, count) for kind, count in _sorted(of_a_step(run.ledger.counts, passes))],
            "longest_chain": [_as_json(kind, count) for kind, count in _sorted(of_a_step(run.ledger.chain, passes))],
        },
    )


def _sorted(ledger: dict[Collective, int]) -> list[tuple[Collective, int]]:
    return sorted(ledger.items(), key=lambda item: (ORDER[item[0].part], item[0]))


def _as_json(kind: Collective, count: int) -> dict[str, Any]:
    return asdict(kind) | {"count": count, "bytes": kind.bytes}


def _slices(slices: tuple[Slice, ...]) -> str:
    """One line for tensors that are alike: of all layers, and of a weight and its moments."""
    groups: dict[tuple[str, tuple[int, ...], str], list[Slice]] = {}
    for own in slices:
        kind = re.sub(r"blocks\.\d+\.", "", own.name)
        groups.setdefault((kind, own.shape, own.dtype), []).append(own)
    rows = [
        (kind, f"{len(members):,}", " x ".join(f"{n:,}" for n in shape), dtype.lower(), f"{_bytes(members) / 1e6:,.3f}")
        for (kind, shape, dtype), members in groups.items()
    ]
    return table(("weight or state", "count", "slice", "type", "MB in all"), rows)


def _bytes(members: list[Slice]) -> int:
    return sum(BYTES[s.dtype] * prod(s.shape) for s in members)

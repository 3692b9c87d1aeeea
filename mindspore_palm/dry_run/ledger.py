"""Which collectives a partitioned graph has: read from the graph that MindSpore compiled, not from a formula."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations
from math import prod

from mindspore_palm.dry_run.graph import Node, longest_chain, read_nodes, tensors
from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.tables import table

BYTES = {"Float32": 4, "BFloat16": 2, "Float16": 2, "Int32": 4, "Int64": 8}
COLLECTIVES = ("AllReduce", "AllGather", "ReduceScatter", "AlltoAll")
ORDER = {"forward": 0, "backward": 1, "update": 2}


@dataclass(frozen=True, order=True)
class Collective:
    """One kind of exchange, as one device sees it."""

    part: str
    """forward, backward or update."""
    op: str
    """all-gather, reduce-scatter, all-reduce, or all-reduce max."""
    axes: str
    """The mesh axes along which the ranks of the group differ; "data (consecutive)" for runs of ranks."""
    weight: str
    """Kind of weight that is gathered or whose gradient is summed; empty for activations and scalars."""
    given: tuple[int, ...]
    """Shape that a device brings."""
    result: tuple[int, ...]
    """Shape that it gets."""
    dtype: str

    @property
    def bytes(self) -> int:
        """Bytes of the larger of what is brought and what is got."""
        return BYTES[self.dtype] * max(prod(self.given), prod(self.result))


@dataclass(frozen=True)
class Ledger:
    """The exchanges of one pass and one update on one device."""

    counts: Counter[Collective]
    chain: Counter[Collective]
    """Those of the longest chain in which each needs what the one before it gave."""


def per_layer(two: Ledger, three: Ledger) -> Ledger:
    """What the third of three layers brought, less what is there once and only grew with it."""
    return Ledger(_added(two.counts, three.counts)[0], _added(two.chain, three.chain)[0])


def extrapolated(two: Ledger, three: Ledger, layers: int) -> Ledger:
    """The ledger of more layers: each beyond the second brings what the third did, and what grew grows on."""
    return Ledger(_carried(two.counts, three.counts, layers - 2), _carried(two.chain, three.chain, layers - 2))


def _carried(two: Counter[Collective], three: Counter[Collective], more: int) -> Counter[Collective]:
    added, grown = _added(two, three)
    result = Counter(two)
    for kind, count in added.items():
        result[kind] += more * count
    for small, large in grown.items():
        shapes = {
            name: tuple(a + more * (b - a) for a, b in zip(getattr(small, name), getattr(large, name), strict=True))
            for name in ("given", "result")
        }
        result[replace(small, **shapes)] += result.pop(small)
    return +result


def _added(
    two: Counter[Collective], three: Counter[Collective]
) -> tuple[Counter[Collective], dict[Collective, Collective]]:
    """What there is more of, and what has another shape: the sums that go over all weights in one vector."""
    more, less = three - two, two - three
    grown = {}
    for small, count in less.items():
        alike = (k for k in more if replace(k, given=small.given, result=small.result) == small and more[k] == count)
        if (large := next(alike, None)) is None:
            raise ValueError(f"a third layer takes away {count} of {small}: two and three layers do not tell of more")
        grown[small] = large
        del more[grown[small]]
    return more, grown


def read_ledger(graph: str, mesh: Mesh, rank: int = 0) -> Ledger:
    """How often each kind of collective is in a compiled graph, and in its longest chain.

    Args:
        graph: text of MindSpore's graph behind its partitioner.
        mesh: that it was partitioned for.
        rank: whose graph it is.
    """
    nodes = list(read_nodes(graph))
    found = {(n.graph, n.number): _collective(n, mesh, rank) for n in nodes if n.op in COLLECTIVES}
    chain = longest_chain(nodes, dict.fromkeys(found, 1.0))
    return Ledger(Counter(found.values()), Counter(found[place] for place in chain))


def _collective(node: Node, mesh: Mesh, rank: int) -> Collective:
    (_, given), (dtype, result) = tensors(node.shapes)
    weight = re.search(r'mirror_user_id: "([\w.]+)"', node.line)
    kept = weight and ("parallel_optimizer" in node.line or "mirror_Mirror" in node.line)
    return Collective(
        part=_part(node),
        op=_op(node),
        axes=group_axes(mesh, rank, _group(node.line)),
        weight=re.sub(r"^blocks\.\d+\.", "", weight.group(1)) if kept else "",
        given=given,
        result=result,
        dtype=dtype,
    )


def group_axes(mesh: Mesh, rank: int, group: list[int]) -> str:
    """The mesh axes that a group of ranks runs along.

    A weight that is whole on all model ranks is fully sharded over runs of consecutive ranks, which are no axis.
    """
    names = [name for name, size in mesh.sizes.items() if size > 1]
    for count in range(1, len(names) + 1):
        for axes in combinations(names, count):
            if mesh.group(rank, axes) == group:
                return " x ".join(axes)
    step = group[1] - group[0]
    return f"{len(group)} ranks" + (", consecutive" if step == 1 else f", every {step}th")


def show_ledger(ledger: Counter[Collective]) -> str:
    """A table to read: count, part, collective, axes, shapes, type, MB of one, and of all where some are several."""
    several, rows = any(count > 1 for count in ledger.values()), []
    for kind, count in sorted(ledger.items(), key=lambda item: (ORDER[item[0].part], item[0])):
        shapes = [" x ".join(f"{size:,}" for size in shape) or "scalar" for shape in (kind.given, kind.result)]
        what = kind.weight or ("" if not kind.given else "all weights" if kind.part == "update" else "activations")
        sizes = [f"{kind.bytes / 1e6:,.3f}", f"{count * kind.bytes / 1e6:,.1f}"][: 1 + several]
        rows.append((f"{count:,}", kind.part, kind.op, kind.axes, what, *shapes, kind.dtype.lower(), *sizes))
    head = ("count", "part", "collective", "over", "of", "brings", "gets", "type", "MB", "MB in all")
    return table(head[: 9 + several], rows)


def show_axes(ledger: Counter[Collective]) -> str:
    """Collectives and bytes by mesh axes."""
    sums: dict[tuple[str, str], list[int]] = {}
    for kind, count in ledger.items():
        total = sums.setdefault((kind.axes, kind.op), [0, 0])
        total[0] += count
        total[1] += count * kind.bytes
    rows = [(axes, op, f"{n:,}", f"{size / 1e9:,.3f}") for (axes, op), (n, size) in sorted(sums.items())]
    return table(("over", "collective", "a step", "GB a step"), rows)


def of_a_step(ledger: Counter[Collective], passes: int) -> Counter[Collective]:
    """A step of several passes: what is forward and backward in each, and one update."""
    return Counter({kind: n if kind.part == "update" else n * passes for kind, n in ledger.items()})


def _part(node: Node) -> str:
    if "update-Update" in node.scope:
        return "update"
    again = "duplicated: Bool(1)" in node.line or "recompute_slice" in node.line  # for the backward pass
    return "backward" if again or "(Gradients/" in node.scope or node.name.startswith("dx") else "forward"


def _op(node: Node) -> str:
    names = {"AllReduce": "all-reduce", "AllGather": "all-gather", "ReduceScatter": "reduce-scatter"}
    name, kind = names.get(node.op, node.op), re.search(r'op: "(\w+)"', node.line)
    return name if kind is None or kind.group(1) == "sum" else f"{name} {kind.group(1)}"


def _group(line: str) -> list[int]:
    return [int(rank) for rank in re.search(r"group_rank_ids: \(([\d, ]+)\)", line).group(1).split(",") if rank.strip()]

"""The collectives of a partitioned graph, read from the graph that MindSpore compiled, not from a formula."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from math import prod
from typing import Any

from mindspore_palm.dry_run.graph import Node, executions, longest_chain, read_nodes, tensors
from mindspore_palm.parallel.mesh import STAGE, Mesh
from mindspore_palm.tables import table

BYTES = {"Float32": 4, "BFloat16": 2, "Float16": 2, "Int32": 4, "Int64": 8}
COLLECTIVES = ("AllReduce", "AllGather", "ReduceScatter", "AlltoAll")
BETWEEN_STAGES = {"Send": "send", "Receive": "receive"}
OF_WEIGHTS = ("parallel_optimizer", "mirror_Mirror", "grad_accumulation_shard")  # in the names of their collectives
WEIGHT_PREFIX = r"^(CR_)?(blocks\.\d+\.)?"  # MindSpore's, of weights that it gathers twice, and the layer's
ORDER = {"forward": 0, "backward": 1, "update": 2}


@dataclass(frozen=True, order=True)
class Collective:
    """One kind of collective, as one device sees it."""

    part: str
    """forward, backward or update."""
    op: str
    """all-gather, reduce-scatter, all-reduce, all-reduce max, or between stages, send or receive."""
    axes: str
    """The mesh axes along which the ranks of the group differ, or a description of the ranks if no axes match."""
    weight: str
    """Weight that is gathered or whose gradient is reduced, without its layer; "weights" where MindSpore does not name
    it, as in an unrolled step; empty for activations and scalars."""
    given: tuple[int, ...]
    """Shape of the input on a device."""
    result: tuple[int, ...]
    """Shape of the output on a device."""
    dtype: str

    @property
    def bytes(self) -> int:
        """Bytes of the larger of input and output."""
        return BYTES[self.dtype] * max(prod(self.given), prod(self.result))


@dataclass(frozen=True)
class Ledger:
    """Collectives of one micro-batch and one update on one device; of an unrolled step, of all its micro-batches."""

    counts: Counter[Collective]
    chain: Counter[Collective]
    """Those of the longest chain in which each depends on the result of the one before; empty for an unrolled step."""


def per_layer(two: Ledger, three: Ledger) -> Ledger:
    """Collectives that a third layer adds; those that only grow with it are left out."""
    return Ledger(_added(two.counts, three.counts)[0], _added(two.chain, three.chain)[0])


def extrapolated(two: Ledger, three: Ledger, layers: int) -> Ledger:
    """The ledger of a deeper network: each layer after the second adds what the third added, and shapes grow alike."""
    return extended(two, three, layers - 2)


def extended(first: Ledger, second: Ledger, more: int) -> Ledger:
    """The ledger that adds to the first ``more`` times what the second adds to it, and shapes grow alike."""
    return Ledger(_extended(first.counts, second.counts, more), _extended(first.chain, second.chain, more))


def renamed(ledger: Ledger, dtype: str, name: str) -> Ledger:
    """The ledger with another name of a dtype."""

    def rename(counts: Counter[Collective]) -> Counter[Collective]:
        return Counter({replace(k, dtype=name) if k.dtype == dtype else k: count for k, count in counts.items()})

    return Ledger(rename(ledger.counts), rename(ledger.chain))


def _extended(two: Counter[Collective], three: Counter[Collective], more: int) -> Counter[Collective]:
    added, grown = _added(two, three)
    result = Counter(two)
    for kind, count in added.items():
        result[kind] += more * count
    for small, large in grown.items():
        shapes: dict[str, Any] = {
            name: tuple(a + more * (b - a) for a, b in zip(getattr(small, name), getattr(large, name), strict=True))
            for name in ("given", "result")
        }
        result[replace(small, **shapes)] += result.pop(small)
    return +result


def _added(
    two: Counter[Collective], three: Counter[Collective]
) -> tuple[Counter[Collective], dict[Collective, Collective]]:
    """Collectives that were added, and those with another shape: all-reduces of one vector over all weights."""
    more, less = three - two, two - three
    grown = {}
    for small, count in less.items():
        same = (k for k in more if replace(k, given=small.given, result=small.result) == small and more[k] == count)
        if (large := next(same, None)) is None:
            raise ValueError(f"a third layer removes {count} of {small}: deeper networks cannot be extrapolated")
        grown[small] = large
        del more[grown[small]]
    return more, grown


def read_ledger(graph: str, mesh: Mesh, rank: int = 0, micro_batches: tuple[int, int] | None = None) -> Ledger:
    """Counts each kind of collective in a compiled graph and in its longest chain.

    Args:
        graph: text of MindSpore's graph after the partitioner.
        mesh: the mesh that it was partitioned for.
        rank: the rank that it was compiled for.
        micro_batches: of an unrolled step: those that the graph has, and those that are asked for. None if the graph is
            of one micro-batch.
    """
    nodes = list(read_nodes(graph))
    if micro_batches:
        return Ledger(_of_unrolled(nodes, executions(graph), mesh, rank, *micro_batches), Counter())
    collectives = {(n.graph, n.number): _collective(n, mesh, rank) for n in nodes if n.op in COLLECTIVES}
    chain = longest_chain(nodes, dict.fromkeys(collectives, 1.0))
    return Ledger(Counter(collectives.values()), Counter(collectives[key] for key in chain))


def _collective(node: Node, mesh: Mesh, rank: int) -> Collective:
    (_, given), (dtype, result) = tensors(node.shapes)
    named = re.search(r'mirror_user_id: "([\w.]+)"', node.line)
    of_weight = any(mark in node.line for mark in OF_WEIGHTS)
    return Collective(
        part=_part(node),
        op=_op(node),
        axes=group_axes(mesh, rank, _group(node.line)),
        weight=(re.sub(WEIGHT_PREFIX, "", named[1]) if named else "weights") if of_weight else "",
        given=given,
        result=result,
        dtype=dtype,
    )


def _of_unrolled(
    nodes: Iterable[Node], often: Mapping[int, int], mesh: Mesh, rank: int, compiled: int, wanted: int
) -> Counter[Collective]:
    """Collectives of a step with ``wanted`` micro-batches, from a graph that has ``compiled`` of them.

    What a graph of a micro-batch does, and what it sends to another stage, is as often for each; all else is once.
    """
    each: Counter[Collective] = Counter()
    once: Counter[Collective] = Counter()
    for node in nodes:
        if node.op in BETWEEN_STAGES:
            kind = _between_stages(node)
            (once if kind.weight else each)[kind] += often[node.graph]
        elif node.op in COLLECTIVES:
            kind = _collective(node, mesh, rank)
            if kind.dtype == "Int32":  # token ids of the batch
                given, result = ((size * wanted // compiled, *rest) for size, *rest in (kind.given, kind.result))
                kind = replace(kind, given=given, result=result)
            (each if often[node.graph] > 1 else once)[kind] += often[node.graph]
    return once + Counter({kind: count * wanted // compiled for kind, count in each.items()})


def _between_stages(node: Node) -> Collective:
    """The table is sent to the last stage as a weight, and its gradient comes back; all else are activations."""
    (_, given), (dtype, result) = tensors(node.shapes)
    shape = result if node.op == "Receive" else given
    weight = "embedding" if "pipeline_param" in node.line else ""
    return Collective(_part(node), BETWEEN_STAGES[node.op], STAGE, weight, shape, shape, dtype)


def group_axes(mesh: Mesh, rank: int, group: list[int]) -> str:
    """The mesh axes along which a group of ranks differs.

    A weight that is replicated over model is fully sharded over runs of consecutive ranks, which match no axes.
    """
    names = [name for name, size in mesh.sizes.items() if size > 1]
    for count in range(1, len(names) + 1):
        for axes in combinations(names, count):
            if mesh.group(rank, axes) == group:
                return " x ".join(axes)
    step = group[1] - group[0]
    return f"{len(group)} ranks" + (", consecutive" if step == 1 else f", every {step}th")


def show_ledger(ledger: Counter[Collective]) -> str:
    """Collectives as a table, with the MB of one and, if any count is above one, of all."""
    several, rows = any(count > 1 for count in ledger.values()), []
    for kind, count in sorted(ledger.items(), key=lambda item: (ORDER[item[0].part], item[0])):
        shapes = [" x ".join(f"{size:,}" for size in shape) or "scalar" for shape in (kind.given, kind.result)]
        tensor = kind.weight or ("" if not kind.given else "all weights" if kind.part == "update" else "activations")
        sizes = [f"{kind.bytes / 1e6:,.3f}", f"{count * kind.bytes / 1e6:,.1f}"][: 1 + several]
        rows.append((f"{count:,}", kind.part, kind.op, kind.axes, tensor, *shapes, kind.dtype.lower(), *sizes))
    head = ("count", "part", "collective", "over", "of", "input", "output", "dtype", "MB", "total MB")
    return table(head[: 9 + several], rows)


def show_axes(ledger: Counter[Collective]) -> str:
    """Collectives and bytes by mesh axes."""
    sums: dict[tuple[str, str], list[int]] = {}
    for kind, count in ledger.items():
        total = sums.setdefault((kind.axes, kind.op), [0, 0])
        total[0] += count
        total[1] += count * kind.bytes
    rows = [(axes, op, f"{n:,}", f"{size / 1e9:,.3f}") for (axes, op), (n, size) in sorted(sums.items())]
    return table(("over", "collective", "per step", "GB per step"), rows)


def per_step(ledger: Counter[Collective], micro_batches: int) -> Counter[Collective]:
    """Collectives of a step: forward and backward for each micro-batch, and one update."""
    return Counter({kind: n if kind.part == "update" else n * micro_batches for kind, n in ledger.items()})


def _part(node: Node) -> str:
    if "update-Update" in node.scope:
        return "update"
    recomputed = "duplicated: Bool(1)" in node.line or "recompute_slice" in node.line
    return "backward" if recomputed or "(Gradients/" in node.scope or node.name.startswith("dx") else "forward"


def _op(node: Node) -> str:
    names = {"AllReduce": "all-reduce", "AllGather": "all-gather", "ReduceScatter": "reduce-scatter"}
    name, reduction = names.get(node.op, node.op), re.search(r'op: "(\w+)"', node.line)
    return name if reduction is None or reduction[1] == "sum" else f"{name} {reduction[1]}"


def _group(line: str) -> list[int]:
    (ranks,) = re.findall(r"group_rank_ids: \(([\d, ]+)\)", line)[:1]
    return [int(rank) for rank in ranks.split(",") if rank.strip()]

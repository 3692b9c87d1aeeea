"""Which collectives a partitioned graph has: read from the graph that MindSpore compiled, not from a formula."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from math import prod

from mindspore_palm.parallel.mesh import Mesh

BYTES = {"Float32": 4, "BFloat16": 2, "Float16": 2, "Int32": 4}
_NODE = re.compile(r"^ +%\d+\((?P<name>[^)]*)\) = (?P<op>AllReduce|AllGather|ReduceScatter|AlltoAll)\((?P<rest>.*)$")
_TENSOR = re.compile(r"Tensor\[(\w+)\]\]?, \(([\d, ]*)\)")


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


def read_ledger(graph: str, mesh: Mesh, rank: int = 0) -> Counter[Collective]:
    """How often each kind of collective is in a compiled graph.

    Args:
        graph: text of MindSpore's graph behind its partitioner.
        mesh: that it was partitioned for.
        rank: whose graph it is.
    """
    ledger: Counter[Collective] = Counter()
    lines = graph.splitlines()
    for number, line in enumerate(lines):
        node = _NODE.match(line)
        if not node:
            continue
        shapes, scope = lines[number + 1], lines[number + 2]
        given, result = (_TENSOR.search(side) for side in shapes.split(" -> "))
        weight = re.search(r'mirror_user_id: "([\w.]+)"', line)
        kept = weight and ("parallel_optimizer" in line or "mirror_Mirror" in line)
        ledger[
            Collective(
                part=_part(node["name"], line, scope),
                op=_op(node["op"], line),
                axes=group_axes(mesh, rank, _group(line)),
                weight=re.sub(r"^blocks\.\d+\.", "", weight.group(1)) if kept else "",
                given=_shape(given.group(2)),
                result=_shape(result.group(2)),
                dtype=result.group(1),
            )
        ] += 1
    return ledger


def per_layer(of_two: Counter[Collective], of_three: Counter[Collective]) -> Counter[Collective]:
    """What a layer adds: the ledger of three layers less that of two."""
    return of_three - of_two


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
    """A table to read: count, part, collective, axes, shapes, type, MB."""
    head = ("count", "part", "collective", "over", "of", "brings", "gets", "type", "MB")
    rows = [head]
    order = {"forward": 0, "backward": 1, "update": 2}
    for kind, count in sorted(ledger.items(), key=lambda item: (order[item[0].part], item[0])):
        shapes = [" x ".join(f"{size:,}" for size in shape) or "scalar" for shape in (kind.given, kind.result)]
        what = kind.weight or ("" if not kind.given else "activations")
        size = f"{kind.bytes / 1e6:,.3f}"
        rows.append((str(count), kind.part, kind.op, kind.axes, what, *shapes, kind.dtype.lower(), size))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _part(name: str, line: str, scope: str) -> str:
    if "update-Update" in scope:
        return "update"
    again = "duplicated: Bool(1)" in line or "recompute_slice" in line  # for the backward pass
    return "backward" if again or "(Gradients/" in scope or name.startswith("dx") else "forward"


def _op(op: str, line: str) -> str:
    name = {"AllReduce": "all-reduce", "AllGather": "all-gather", "ReduceScatter": "reduce-scatter"}.get(op, op)
    kind = re.search(r'op: "(\w+)"', line)
    return name if kind is None or kind.group(1) == "sum" else f"{name} {kind.group(1)}"


def _group(line: str) -> list[int]:
    return [int(rank) for rank in re.search(r"group_rank_ids: \(([\d, ]+)\)", line).group(1).split(",") if rank.strip()]


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size.strip())

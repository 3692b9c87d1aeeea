"""Parser of a compiled graph as MindSpore writes it: nodes, their inputs, and the sharded Parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

_NODE = re.compile(r"^ +%(?P<number>\d+)\((?P<name>[^)]*)\) = (?P<op>[%\w@]+)\((?P<rest>.*)$")
_ATTRIBUTES = re.compile(r" (?:\{instance name|primitive_attrs: |cnode_attrs: |cnode_primal_attrs: )")
_PARAMETER = re.compile(r"^%para\d+_([\w.]+): <Ref\[Tensor\[(\w+)\]\], \(([\d, ]*)\)")
_SUBGRAPH = re.compile(r"^subgraph @", re.MULTILINE)
_TOTAL = re.compile(r"^# Total subgraphs: (\d+)$", re.MULTILINE)
_SUBGRAPH = re.compile(r"^subgraph @", re.MULTILINE)
_START = re.compile(r"^subgraph @([^\s(]+)\(")
_CALL = re.compile(r"(?:= call @|\[@(?:Partial\()?@)([^\s(),\]]+)")  # by name, or through a closure
_TENSOR = re.compile(r"Tensor\[(\w+)\]\]?, \(([\d, ]*)\)")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One op of a graph."""

    graph: int
    """Number of its subgraph; 0 is the main graph."""
    number: int
    name: str
    op: str
    needs: tuple[int, ...]
    """Numbers of the nodes of the same subgraph that it takes as inputs."""
    line: str
    """Its line in the text, with all attributes."""
    shapes: str
    scope: str


@dataclass(frozen=True)
class Shard:
    """A Parameter as one device holds it."""

    name: str
    shape: Shape
    dtype: str


def read_nodes(text: str) -> Iterator[Node]:
    """The nodes of a graph's text, in its order: the main graph, then the graphs that it calls."""
    lines, graph = text.splitlines(), -1
    for number, line in enumerate(lines):
        if line.startswith("subgraph @"):
            graph += 1
            continue
        match = _NODE.match(line)
        if not match:
            continue
        inputs = _ATTRIBUTES.split(match["rest"], maxsplit=1)[0]
        needs = {int(n) for n in re.findall(r"%(\d+)\b", f"{match['op']} {inputs}")}
        yield Node(
            max(graph, 0),
            int(match["number"]),
            match["name"],
            match["op"],
            tuple(sorted(needs)),
            line,
            lines[number + 1],
            lines[number + 2],
        )


def executions(text: str) -> dict[int, int]:
    """How often a step executes each subgraph, by its number: graphs of micro-batches are called again and again."""
    names: list[str] = []
    calls: list[tuple[int, str]] = []
    for line in text.splitlines():
        if start := _START.match(line):
            names.append(start[1])
        elif names:
            calls += [(len(names) - 1, name) for name in _CALL.findall(line)]
    called = {name for _, name in calls}
    counts = {name: int(name not in called) for name in names}
    for _ in names:  # callers may come after what they call
        for name in called & counts.keys():
            counts[name] = sum(counts[names[caller]] for caller, other in calls if other == name)
    return {number: counts[name] for number, name in enumerate(names)}


def is_complete(text: str) -> bool:
    """Whether a graph's text has all subgraphs that its header announces, and the last one ends."""
    announced = _TOTAL.search(text)
    subgraphs = len(_SUBGRAPH.findall(text))
    return announced is not None and subgraphs == int(announced[1]) and text.rstrip().endswith("\n}")


def read_parameters(text: str) -> list[Shard]:
    """The Parameters of a graph's text, with the shapes that the partitioner gave them."""
    matches = (_PARAMETER.match(line) for line in text[: text.index("subgraph @")].splitlines())
    return [Shard(match[1], shape_of(match[3]), match[2]) for match in matches if match]


def tensors(shapes: str) -> tuple[tuple[str, Shape], tuple[str, Shape]]:
    """Dtype and shape of a node's first input, and of its output."""
    given, result = ((match[1], shape_of(match[2])) for side in shapes.split(" -> ") if (match := _TENSOR.search(side)))
    return given, result


def shape_of(text: str) -> Shape:
    """``2, 3`` as a tuple."""
    return tuple(int(size) for size in text.split(",") if size.strip())


def longest_chain(nodes: list[Node], weights: dict[tuple[int, int], float]) -> list[tuple[int, int]]:
    """The heaviest chain of nodes in which each depends on the one before: (graph, number) of those that have a weight.

    Called graphs start after the main graph's chain has ended, as the update waits for the norm of all gradients.
    """
    chain: list[tuple[int, int]] = []
    for graph in sorted({node.graph for node in nodes}):
        best: dict[int, float] = {}
        before: dict[int, int | None] = {}
        for node in (n for n in nodes if n.graph == graph):
            last = max((n for n in node.needs if n in best), key=best.__getitem__, default=None)
            best[node.number] = weights.get((graph, node.number), 0.0) + (best[last] if last is not None else 0.0)
            before[node.number] = last
        backwards: list[tuple[int, int]] = []
        number = max(best, key=best.__getitem__, default=None)
        while number is not None:
            if (graph, number) in weights:
                backwards.append((graph, number))
            number = before[number]
        chain += reversed(backwards)
    assert all(a <= b for a, b in pairwise(chain))  # noqa: S101 - MindSpore writes nodes in an executable order
    return chain

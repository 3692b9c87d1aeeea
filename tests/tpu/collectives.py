"""The collectives of one layer, read from the program that XLA compiled for TPU.

A layer is the body of a loop: one loop forward, one backward. What XLA did with a collective has many faces there:
a reduce-scatter is a fusion of an all-reduce and a slice, or a ring of permutations around the parts of a product
("collective matmul"); what crosses pods is a send to the hosts. All are told here by what they mean.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from math import prod

from tpu.case import Case

BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
_HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_OP = re.compile(
    r"= (?P<type>.*?) (?P<op>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|send)(-start)?\("
)
_ARRAY = re.compile(r"\b(f32|bf16|s32|u32|pred)\[([\d,]*)\]")
_WINDOWED = "windowed_dot_general_body"


@dataclass(frozen=True, order=True)
class Exchange:
    """One kind of exchange, as one chip sees it."""

    part: str
    """forward or backward."""
    op: str
    """all-gather, reduce-scatter, all-reduce, permute; "... in a product" for a ring around its parts."""
    axes: str
    """The mesh axes along which the chips of a group differ."""
    what: str
    """q_wi, kv, o_wo, or activations; "sums of rows" of [B, S], "norm.scale" of [D]."""
    shape: tuple[int, ...]
    """The larger of what is brought and what is got; () for several arrays in one."""
    dtype: str
    bytes: int
    """Of that array."""


def computations(program: str) -> tuple[dict[str, list[str]], str]:
    """Name to lines of every computation, and the name of the entry."""
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in program.splitlines():
        header = _HEADER.match(line)
        if header:
            lines = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return found, entry


def layer_loops(program: str) -> tuple[str, str]:
    """Names of the bodies of the loops over layers: forward, backward.

    Raises:
        ValueError: there are not two.
    """
    found, entry = computations(program)
    bodies = [re.search(r"body=%([\w.\-]+)", line)[1] for line in found[entry] if " while(" in line]
    bodies = [body for body in bodies if _WINDOWED not in body]
    if len(bodies) != 2:
        raise ValueError(f"two loops over layers were expected, and there are {bodies}")
    return bodies[0], bodies[1]


def per_layer(program: str, case: Case) -> Counter[Exchange]:
    """How often a layer has each kind of exchange, in the text of a compiled program."""
    found, _ = computations(program)
    ledger: Counter[Exchange] = Counter()
    for part, body in zip(("forward", "backward"), layer_loops(program), strict=True):
        for name in reached(found, body):
            if _WINDOWED in name:
                half = "all-gather" if f"{_WINDOWED}_ag" in name else "reduce-scatter"
                ledger[ring(part, f"{half} in a product", found[name], case)] += 1
                continue
            for line in found[name]:
                match = _OP.search(line)
                if match:
                    op = "reduce-scatter" if name.startswith("all-reduce-scatter") else match["op"]
                    ledger[exchange(part, op, line, match["type"], case)] += 1
    return ledger


def reached(found: dict[str, list[str]], name: str) -> list[str]:
    """The computations that ``name`` runs, each once; of a ring around a product, its loop alone."""
    seen, ahead = [], [name]
    while ahead:
        name = ahead.pop()
        if name in seen:
            continue
        seen.append(name)
        if _WINDOWED not in name:
            ahead += [called for line in found[name] for called in re.findall(r"(?:calls|body)=%([\w.\-]+)", line)]
    return seen


def ring(part: str, op: str, lines: list[str], case: Case) -> Exchange:
    """What a loop of permutations around the parts of a product means: its parts are slices over the axis."""
    line = next(line for line in lines if " collective-permute-start(" in line)
    axes = _moved_along(case, line)
    dtype, shape = _arrays(_OP.search(line)["type"])[0]
    shape = (*shape[:-1], shape[-1] * _chips(case, axes))
    return Exchange(part, op, axes, what(shape, prod(shape), axes, case), shape, dtype, BYTES[dtype] * prod(shape))


def exchange(part: str, op: str, line: str, result: str, case: Case) -> Exchange:
    """What an instruction means; ``result`` is its type."""
    arrays = _arrays(result)
    # the type of another started one would hold its operand as well
    assert op == "collective-permute" or f"{op}-start(" not in line, line
    if op == "send":  # a slice to the hosts, which add up those of the pods
        assert 'transfer_type="ALL_REDUCE"' in line, line
        op, axes, arrays = "all-reduce by hosts", "pod", arrays[:1]
    elif op == "collective-permute":
        op, axes, arrays = "permute", _moved_along(case, line), arrays[:1]
    else:
        axes = group_axes(case, replica_group(line))
    dtype, shape = arrays[0]
    count = sum(prod(shape) for _, shape in arrays)
    if op == "reduce-scatter" and " reduce-scatter(" in line:  # its type is the slice
        shape, count = (shape[0] * _chips(case, axes), *shape[1:]), count * _chips(case, axes)
    shape = tuple(size for size in shape if size != 1) if len(arrays) == 1 else ()
    return Exchange(part, op, axes, what(shape, count, axes, case), shape, dtype, BYTES[dtype] * count)


def what(shape: tuple[int, ...], count: int, axes: str, case: Case) -> str:
    """The weight whose rows or columns an array has, or the activations."""
    palm = case.shape
    into = (palm.heads * palm.head_dim + 2 * palm.d_ff) // case.model
    rows = (palm.heads * palm.head_dim + palm.d_ff) // case.model
    if count == palm.d_model // case.model and axes != "model":
        return "norm.scale"
    sizes = {"q_wi": palm.d_model * into, "kv": palm.d_model * 2 * palm.head_dim, "o_wo": rows * palm.d_model}
    for name, size in sizes.items():
        if count * case.data == size:  # a slice, in whatever shape
            return name
    if count == case.sequences * case.length:
        return "sums of rows"
    if len(shape) == 2 and shape[0] != case.length:
        names = [("q_wi", shape[1] == into), ("kv", shape[1] == 2 * palm.head_dim), ("o_wo", shape[0] == rows)]
        return next((name for name, fits in names if fits), "?")
    return "activations"


def group_axes(case: Case, group: list[int]) -> str:
    """The mesh axes that chip 0's group runs along; model counts fastest."""
    for count in range(1, 4):
        for axes in combinations(_strides(case), count):
            ranks = [0]
            for axis in axes:
                size, stride = _strides(case)[axis]
                ranks = [rank + i * stride for rank in ranks for i in range(size)]
            if sorted(ranks) == sorted(group):
                return " x ".join(axis for axis in axes if _strides(case)[axis][0] > 1)
    return f"{len(group)} chips"


def _strides(case: Case) -> dict[str, tuple[int, int]]:
    """Axis to its size, and to how far apart its neighbours are."""
    return {"pod": (case.pods, case.data * case.model), "data": (case.data, case.model), "model": (case.model, 1)}


def _chips(case: Case, axes: str) -> int:
    return prod(_strides(case)[axis][0] for axis in axes.split(" x "))


def _moved_along(case: Case, line: str) -> str:
    """The mesh axes along which a permutation moves."""
    pairs = re.search(r"source_target_pairs=\{(.*?\})\}", line)[1]
    moved = set()
    for source, target in re.findall(r"\{(\d+),(\d+)\}", pairs):
        for axis, (size, stride) in _strides(case).items():
            if int(source) // stride % size != int(target) // stride % size:
                moved.add(axis)
    return " x ".join(axis for axis in _strides(case) if axis in moved)


def _arrays(type_: str) -> list[tuple[str, tuple[int, ...]]]:
    """Type and shape of every array in an instruction's type, but counters."""
    found = [(dtype, tuple(int(size) for size in sizes.split(",") if size)) for dtype, sizes in _ARRAY.findall(type_)]
    return [(dtype, shape) for dtype, shape in found if dtype != "u32"]


def replica_group(line: str) -> list[int]:
    """Chip 0's group, in any of the ways in which XLA writes them."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return [int(chip) for chip in listed[1].split(",")]
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        along = re.findall(r"'(\w+)'", named[2])
        group, stride = [0], 1
        for axis in reversed(sizes):
            if axis in along:
                group = [chip + i * stride for chip in group for i in range(sizes[axis])]
            stride *= sizes[axis]
        return group
    counted = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    sizes = [int(size) for size in counted[3].split(",")]
    order = [int(axis) for axis in counted[4].split(",")] if counted[4] else range(len(sizes))
    strides = [prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    chips = [0]
    for axis in order:
        chips = [chip + i * strides[axis] for chip in chips for i in range(sizes[axis])]
    return chips[: int(counted[2])]

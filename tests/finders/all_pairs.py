"""Covering arrays: few rows in which every two values of every two parameters occur together."""

from __future__ import annotations

import random
from collections.abc import Sequence

CANDIDATES = 4  # rows that are tried for each one that is taken


def all_pairs(sizes: Sequence[int], seed: int = 0) -> list[tuple[int, ...]]:
    """Rows of values 0 .. size - 1, one for each parameter, greedily chosen.

    Args:
        sizes: how many values each parameter has.
        seed: decides among rows that cover equally many new pairs.
    """
    draw = random.Random(seed)
    first = [sum(sizes[:parameter]) for parameter in range(len(sizes))]  # value x of a parameter is number first + x
    numbers = [range(start, start + size) for start, size in zip(first, sizes, strict=True)]
    missing = {number: {n for other in numbers if other is not own for n in other} for own in numbers for number in own}
    rows = []
    while any(missing.values()):
        row = max((_row(numbers, missing, draw) for _ in range(CANDIDATES)), key=lambda row: _gain(row, missing))
        for number in row:
            missing[number] -= set(row)
        rows.append(tuple(number - start for number, start in zip(row, first, strict=True)))
    return rows


def _row(numbers: Sequence[range], missing: dict[int, set[int]], draw: random.Random) -> list[int]:
    """A row that holds a missing pair and many others."""
    start = max(missing, key=lambda number: (len(missing[number]), draw.random()))
    chosen = {next(p for p, own in enumerate(numbers) if start in own): start}
    rest = [parameter for parameter in range(len(numbers)) if parameter not in chosen]
    draw.shuffle(rest)
    for parameter in rest:
        taken = set(chosen.values())
        chosen[parameter] = max(numbers[parameter], key=lambda n: (len(missing[n] & taken), draw.random()))
    return [chosen[parameter] for parameter in range(len(numbers))]


def _gain(row: Sequence[int], missing: dict[int, set[int]]) -> int:
    taken = set(row)
    return sum(len(missing[number] & taken) for number in row)

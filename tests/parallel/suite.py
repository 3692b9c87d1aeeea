"""The cases that run: a few always, the rest of the table on request, and planted errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product

from parallel.cases import MUTATIONS, OPTIMIZERS, Case

MESHES = ((1, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 1), (2, 2, 2))  # pods, data, model
RECOMPUTE = ("none", "attention", "block")

QUICK = [
    Case((1, 1, 1), "off", "none", "adafactor", 1, gradients=True),
    Case((1, 1, 1), "off", "none", "adamw", 1, gradients=True),
    Case((1, 1, 1), "off", "block", "adamw", 2),
    Case((1, 2, 1), "pod", "attention", "adafactor", 1, gradients=True),
    Case((1, 1, 2), "off", "none", "adamw", 2, gradients=True),
    Case((1, 2, 2), "pod", "block", "adafactor", 2, gradients=True),
    Case((2, 1, 2), "all", "attention", "adamw", 1),
]
"""Each axis alone, two of them together, and every value of every setting."""

HEALTHY = QUICK[3]
MUTANTS = [replace(HEALTHY, mutation=name, gradients=False) for name in MUTATIONS]


def distinct_shardings(mesh: tuple[int, int, int]) -> Sequence[str]:
    """Over one data shard, sharding inside a pod is none; in one pod, sharding over all pods is that inside it."""
    pods, data, _ = mesh
    return ["off"] + ["pod"] * (data > 1) + ["all"] * (pods > 1)


def full_table() -> Iterable[Case]:
    """Every mesh x sharding x optimizer x micro-batches; the kinds of recomputation alternate."""
    turn, seen = 0, set()
    for mesh in MESHES:
        for sharding, optimizer, micro_batches in product(distinct_shardings(mesh), OPTIMIZERS, (1, 2)):
            recompute = RECOMPUTE[turn % 3]
            key = (mesh, sharding, recompute)  # gradients depend on nothing else
            yield Case(mesh, sharding, recompute, optimizer, micro_batches, gradients=key not in seen)
            seen.add(key)
            turn += 1


FURTHER = [  # beyond the table: the other strategies, and sequences whose queries take two chunks
    Case((1, 2, 2), "off", table="data", gradients=True),
    Case((1, 2, 2), "all", "block", "adamw", table="data", gradients=True),
    Case((1, 2, 2), "off", "attention", table="model", gradients=True),
    Case((1, 2, 2), "pod", "block", "adamw", 2, length=128, gradients=True),
]
SLOW = [case for case in [*full_table(), *FURTHER] if case.name not in {quick.name for quick in QUICK}]

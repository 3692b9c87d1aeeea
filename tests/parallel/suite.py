"""The cases that run: a few by default, the rest of the table on request, and planted errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product

from parallel.cases import MUTATIONS, MUTATIONS_OF_DEPARTURES, MUTATIONS_OF_PIPELINES, NETWORKS, OPTIMIZERS, Case

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

GPT3 = Case((1, 2, 2), "pod", "block", "factored", 1, gradients=True, network="gpt3")
QUICK_DEPARTURES = [GPT3]
"""Everything in which GPT-3 departs from PaLM, with the factored Adafactor, in the workers of the quick cases."""
MESHES_OF_DEPARTURES = ((1, 1, 2), (1, 2, 1), (1, 2, 2))

PIPELINE = Case((1, 1, 2), "off", "none", "adafactor", 4, gradients=True, network="deep", stages=2)
QUICK_PIPELINES = [
    PIPELINE,
    Case((1, 2, 1), "pod", "block", "adamw", 2, network="deep", stages=2, interleave=2),
]
"""Two stages of two model ranks, and interleaved ones of two fully sharded data ranks."""

QUICK_REDUCTIONS = [
    Case((2, 2, 1), "pod", "none", "adafactor", 2, gradients=True, reduce="pods_per_step"),
    Case((1, 2, 2), "pod", "block", "adamw", 4, gradients=True, reduce="per_step"),
]
"""Gradients that are reduced once a step: over pods alone, and over everything."""

HEALTHY = QUICK[3]
MUTANTS = [replace(HEALTHY, mutation=name, gradients=False) for name in MUTATIONS]
MUTANTS_OF_PIPELINE = [replace(PIPELINE, mutation=name, gradients=False) for name in MUTATIONS_OF_PIPELINES]
MUTANT_OF_REDUCTIONS = replace(QUICK_REDUCTIONS[1], mutation="micro-batch lost", gradients=False)
MUTANTS_OF_GPT3 = [replace(GPT3, mutation=name, gradients=False) for name in MUTATIONS_OF_DEPARTURES]

DEFAULT = [QUICK[0], QUICK[1], QUICK[3], QUICK[4], QUICK[5], GPT3, PIPELINE, QUICK_REDUCTIONS[0]]
DEFAULT_MUTANTS = [MUTANTS[0], MUTANTS_OF_PIPELINE[-1]]
"""Those that run by default: each axis, both together, stages and a reduction; the rest of the quick ones is slow."""


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
# Adafactor's first step is a sign, and geglu has a gradient of 1e-9 here, where the typical one is 3e-3: its sign is
# another one on every mesh, and in JAX. AdamW's eps keeps it from a full step.
OPTIMIZER_OF = {"palm": "factored", "geglu": "adamw"}
DEPARTURES = [  # each network on each mesh; PaLM's with the factored Adafactor
    Case(mesh, "pod", gradients=True, optimizer=OPTIMIZER_OF.get(network, "adafactor"), network=network)
    for network in NETWORKS
    for mesh in MESHES_OF_DEPARTURES
]
DEPARTURES += [  # and what no other case has
    Case((1, 2, 2), "pod", "block", "adafactor", 2, gradients=True, network="serial"),
    Case((1, 2, 2), "pod", "attention", "adamw", 1, gradients=True, network="heads"),
    Case((2, 1, 2), "all", "block", "factored", 1, gradients=True, network="gpt3"),
    Case((1, 2, 2), "off", "none", "factored", 1, gradients=True, table="model", network="gpt3"),
    Case((1, 2, 2), "all", "none", "factored", 1, gradients=True, table="data", network="gpt3"),
    Case((2, 2, 2), "pod", "none", "factored", 1, gradients=True, network="gpt3"),
]
STAGES = [  # of two and four stages, each a mesh: pods, data, model
    (2, (1, 1, 1)),
    (2, (1, 1, 2)),
    (2, (1, 2, 1)),
    (2, (2, 1, 1)),
    (2, (1, 2, 2)),
    (4, (1, 1, 1)),
    (4, (1, 1, 2)),
]
SCHEDULES = ("1f1b", "gpipe", "seqpipe", "seqvpp", "seqsmartvpp", "zero_bubble_v")
PIPELINES = [
    Case(mesh, sharding, *how, gradients=True, network="deep", stages=n)
    for n, mesh in STAGES
    for sharding in distinct_shardings(mesh)[-1:]
    for how in (("none", "adafactor", 4), ("block", "adamw", 8 // (mesh[0] * mesh[1])), ("attention", "lion", 4))
]
PIPELINES += [  # every schedule, with odd numbers of micro-batches as well, and the networks of others
    replace(PIPELINE, interleave=2, schedule=schedule, recompute=recompute)
    for schedule in SCHEDULES
    for recompute in ("none", "block")
]
PIPELINES += [
    Case((1, 2, 1), "off", "none", "adafactor", 4, gradients=True, network="deep", stages=2, interleave=2),
    Case((1, 2, 2), "pod", "block", "factored", 4, gradients=True, network="gpt3", stages=2),
    Case((1, 1, 2), "off", "none", "factored", 2, gradients=True, network="palm", stages=2),
    Case((1, 2, 1), "pod", "none", "adafactor", 2, gradients=True, network="around_one", stages=2),
]
REDUCTIONS = [  # every reduction with every kind of recomputation, sharding and optimizer
    *QUICK_REDUCTIONS,
    Case((2, 2, 1), "pod", "attention", "adamw", 2, gradients=True, reduce="pods_per_step"),
    Case((2, 2, 1), "pod", "block", "lion", 2, gradients=True, reduce="pods_per_step"),
    Case((2, 2, 2), "pod", "block", "adafactor", 2, gradients=True, reduce="pods_per_step"),
    Case((2, 2, 1), "pod", "block", "factored", 2, gradients=True, reduce="pods_per_step", network="gpt3"),
    Case((1, 2, 1), "off", "none", "adafactor", 4, gradients=True, reduce="per_step"),
    Case((1, 1, 2), "off", "none", "lion", 2, gradients=True, reduce="per_step"),
    Case((2, 2, 1), "pod", "none", "adafactor", 2, gradients=True, reduce="per_step"),
    Case((2, 1, 2), "all", "attention", "adamw", 4, gradients=True, reduce="per_step"),
    Case((1, 2, 2), "all", "block", "adafactor", 2, gradients=True, reduce="per_step", table="data"),
    Case((2, 2, 2), "pod", "block", "adafactor", 2, gradients=True, reduce="per_step"),
    Case((1, 2, 2), "pod", "none", "factored", 4, gradients=True, reduce="per_step", network="gpt3"),
]
SLOW = [case for case in [*full_table(), *FURTHER] if case.name not in {quick.name for quick in QUICK}]

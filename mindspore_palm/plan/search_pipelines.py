"""Search over pipelines as well: stages, interleaving, micro-batches, and activations that are sharded over model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import get_args

from mindspore_palm.config import Settings
from mindspore_palm.cost.memory import memory_by_kind
from mindspore_palm.cost.workload import Workload
from mindspore_palm.errors import UserError
from mindspore_palm.palm_config import Recompute
from mindspore_palm.parallel.check import partitions_for
from mindspore_palm.plan.machines import Machine
from mindspore_palm.plan.pipeline import Pipeline, memory_by_stage
from mindspore_palm.plan.search import USABLE, Candidate, problem, search
from mindspore_palm.plan.step_time import Overlap, StageCosts, step_time

MOST_STAGES = 64
BEST = 10  # candidates whose schedules are played to the end
Check = Callable[[Settings, Machine], str]


@dataclass(frozen=True)
class Bound:
    """A candidate that fits, with the seconds that its step takes at least: those without a bubble."""

    seconds: float
    settings: Settings
    pipeline: Pipeline
    memory: tuple[dict[str, int], ...]
    """Bytes by kind, for each device of the pipeline."""

    @property
    def bytes(self) -> int:
        """Bytes on the device that needs the most."""
        return max(sum(kinds.values()) for kinds in self.memory)


def search_all(settings: Settings, machine: Machine, devices: int) -> tuple[list[Candidate], int]:
    """Candidates without a pipeline and the best ones with one, best first, and how many fit.

    Raises:
        UserError: none fits; names the reason.
    """
    piped, count = search_pipelines(settings, machine, devices, problem)
    try:
        plain = search(settings, machine, devices)
    except UserError:
        if not piped:
            raise
        plain = []
    return sorted([*plain, *piped], key=lambda c: (-c.time.mfu, c.bytes)), len(plain) + count


def search_pipelines(
    settings: Settings,
    machine: Machine,
    devices: int,
    check: Check,
    overlap: Overlap | None = None,
    sharded: tuple[bool, ...] = (False, True),
    piped: bool | None = None,
) -> tuple[list[Candidate], int]:
    """The best candidates with pipelines or sequence parallelism, best first, and how many fit.

    A schedule is played only for those that could be among the best: the others take longer even without a bubble.

    Args:
        settings: of the run; the mesh is searched, with ``parallel.pods`` as set.
        machine: to plan for.
        devices: all of them.
        check: returns what does not fit about the mesh of a stage, empty if all does.
        overlap: collectives that are hidden.
        sharded: whether norms and residuals are sharded over model, to try.
        piped: True for pipelines alone, False for none; None for both.
    """
    overlap = overlap or Overlap()
    every = bounds(settings, machine, devices, check, overlap, sharded, piped)
    ordered = sorted(every, key=lambda b: (b.seconds, b.bytes))
    found: list[Candidate] = []
    for bound in ordered:
        if len(found) >= BEST and bound.seconds >= sorted(c.time.seconds for c in found)[BEST - 1]:
            break
        work = bound.pipeline.apply(Workload.of(bound.settings, machine.target))
        time = step_time(work, machine, overlap)
        heaviest = max(bound.memory, key=lambda kinds: sum(kinds.values()))
        found.append(Candidate(bound.settings, time, heaviest, bound.pipeline, bound.memory))
    return sorted(found, key=lambda c: (-c.time.mfu, c.bytes)), len(ordered)


def bounds(
    settings: Settings,
    machine: Machine,
    devices: int,
    check: Check,
    overlap: Overlap,
    sharded: tuple[bool, ...] = (False, True),
    piped: bool | None = None,
) -> Iterator[Bound]:
    """Every candidate that fits; the arguments are those of ``search_pipelines``."""
    usable = USABLE * machine.memory
    for variant, stages in _meshes(settings, devices):
        if piped not in (None, stages > 1) or check(variant, machine):
            continue
        model = variant.parallel.model
        for micro_batch in _micro_batches(variant, stages):
            for recompute, over_model in product(get_args(Recompute), sharded if model > 1 else (False,)):
                if stages == 1 and not over_model and piped is None:  # as the search for meshes does
                    continue
                one = variant.model_copy(
                    update={
                        "train": variant.train.model_copy(update={"micro_batch": micro_batch}),
                        "parallel": variant.parallel.model_copy(update={"recompute": recompute}),
                    }
                )
                base, costs = Workload.of(one, machine.target), None
                for pipeline in _pipelines(one, stages, base.micro_batches, over_model):
                    work = pipeline.apply(base)
                    costs = StageCosts.of(work, machine, overlap, like=costs)
                    memory = _memory(one, work, machine)
                    if max(sum(kinds.values()) for kinds in memory) <= usable:
                        parts = costs.busiest_parts()
                        seconds = sum(parts.values()) + sum(costs.per_step(parts["matmuls"]).values())
                        yield Bound(seconds, one, pipeline, memory)


def _memory(settings: Settings, work: Workload, machine: Machine) -> tuple[dict[str, int], ...]:
    if work.pipeline > 1:
        return memory_by_stage(work, machine)
    fused = machine.fused_elementwise, machine.fused_attention
    return (memory_by_kind(settings, work.layout, *fused, sequence_parallel=work.sequence_parallel),)


def _meshes(settings: Settings, devices: int) -> Iterator[tuple[Settings, int]]:
    """Settings with the mesh of a stage, and the number of stages."""
    pods, in_pod = settings.parallel.pods, devices // settings.parallel.pods
    if devices % pods or not partitions_for(devices):
        return
    for stages in (n for n in range(1, min(in_pod, settings.model.layers, MOST_STAGES) + 1) if in_pod % n == 0):
        for model in (n for n in range(1, in_pod // stages + 1) if (in_pod // stages) % n == 0):
            if settings.model.heads % model:
                continue
            data = in_pod // stages // model
            yield (
                settings.model_copy(
                    update={
                        "model": settings.model.model_copy(update={"vocab_multiple": model * data}),
                        "train": settings.train.model_copy(update={"micro_batch": 0}),
                        "parallel": settings.parallel.model_copy(update={"data": data, "model": model}),
                    }
                ),
                stages,
            )


def _micro_batches(settings: Settings, stages: int) -> Iterator[int]:
    """Sequences per micro-batch: one per data rank, two, four and so on, with a micro-batch per two stages at least."""
    batch = settings.train.batch_ramp()[-1][1]
    size = settings.parallel.pods * settings.parallel.data
    while batch % size == 0 and 2 * (batch // size) >= stages:
        yield 0 if size == batch else size
        size *= 2


def _pipelines(settings: Settings, stages: int, micro_batches: int, sharded: bool) -> Iterator[Pipeline]:
    if stages == 1:
        yield Pipeline(sequence_parallel=sharded)
        return
    layers = settings.model.layers // stages  # of each device, at least
    for interleave in sorted({1, 2, 4, layers}):
        if interleave > layers or (interleave > 1 and micro_batches % stages):
            continue
        for once in (True, False) if settings.parallel.data > 1 else (True,):
            yield Pipeline(stages, interleave, "1f1b", once, sharded)

"""Ways to use several pods: data parallel, a pipeline with a stage per pod, both, and several models.

Each pod has its share of the batch, as in ``plan/pods.py``, whose ways are the data-parallel ones here. In a pipeline,
a pod computes its layers for the batch of all pods of the pipeline, in micro-batches, and sends activations instead of
gradients. With both, the pods are replicas of a pipeline, and each stage adds its gradients over the replicas.

Several models: one per pod, so that nothing crosses; one per pod with half of the weights in common, whose gradients
are sent to all pods; or two that take turns on one pipeline, each in the other's bubble.

All transfers overlap with computation as far as this lasts. A controller starts a program per stage and pass of a
micro-batch, ahead of time; it costs time only if these take longer to start than to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mindspore_palm.cost.workload import Workload
from mindspore_palm.plan.machines import GB, Machine
from mindspore_palm.plan.pipeline import Pipeline, memory_by_stage
from mindspore_palm.plan.pods import BACKWARD, DISPATCH, LINKS, exposed, host_bytes, span
from mindspore_palm.plan.search import USABLE
from mindspore_palm.plan.step_time import Overlap, step_time

ALL_LINKS = (0.1, 0.2, 0.5, *LINKS)
"""GB/s per host, each way."""
COMMON = 0.5
"""Share of the weights that several models have in common."""
INTERLEAVE = (1, 2, 4)
ONE_MODEL = ("data", "pipeline", "both")
HIDDEN = Overlap(sends=True)


@dataclass(frozen=True)
class Piped:
    """A pipeline over pods at its best micro-batch."""

    seconds: float
    """Of a step, as one program over all pods."""
    stages: int
    interleave: int
    micro_batches: int
    programs: int
    """Programs that a controller starts per step, over all pods."""
    dispatch: float
    """Seconds to start them."""

    @property
    def controlled(self) -> float:
        """Seconds of a step with a controller, which cannot run programs faster than it starts them."""
        return max(self.seconds, self.dispatch)


@dataclass(frozen=True)
class Ways:
    """Ways to use pods with links of one speed: seconds until each pod has trained on its share of the batch."""

    pods: int
    link: float
    """GB/s per host, each way."""
    alone: float
    """One pod alone; also of one model per pod, as nothing crosses."""
    spmd: float
    """Data parallel, one program."""
    programs: float
    """Data parallel, a program per pod."""
    pipeline: Piped | None
    """A stage per pod; None on one pod, or if nothing fits."""
    both: Piped | None
    """Replicas of a pipeline; None if pods cannot be both."""
    shared: float
    """One model per pod, with weights in common."""
    turns: float | None
    """Two models on one pipeline, per model; None if both do not fit."""

    @property
    def seconds(self) -> dict[str, float]:
        """Of each way to train one model that there is."""
        ways = {"data": min(self.spmd, self.programs)}
        return ways | {
            name: piped.seconds for name, piped in (("pipeline", self.pipeline), ("both", self.both)) if piped
        }

    @property
    def fastest(self) -> Piped | None:
        """The faster one of a pipeline and its replicas."""
        return min((p for p in (self.pipeline, self.both) if p), key=lambda piped: piped.seconds, default=None)

    @property
    def winner(self) -> str:
        """The fastest way to train one model; the simplest of those that are equal."""
        return min(self.seconds, key=lambda way: (round(self.seconds[way], 6), ONE_MODEL.index(way)))

    def efficiency(self, seconds: float) -> float:
        """Throughput relative to pods that have nothing to do with each other."""
        return self.alone / seconds


def ways(work: Workload, machine: Machine, pods: int, link: float) -> Ways:
    """Predicts the ways.

    Args:
        work: a step of one pod.
        machine: a torus, whose hosts have the links between pods.
        pods: number of pods.
        link: GB/s per host, each way.
    """
    data = span(work, machine, pods, link)
    layers, backward = work.model.layers, BACKWARD * data.alone
    once = work.gradient_reductions * host_bytes(work, machine) / (link * GB)
    in_common = min(exposed(COMMON * (pods - 1) * once, backward, n) for n in range(1, layers + 1))
    pipeline = _best(_piped(work, machine, pods, 1, link)) if pods > 1 else None
    splits = [(stages, pods // stages) for stages in range(2, pods // 2 + 1) if pods % stages == 0]
    both = [piped for stages, replicas in splits for piped in _piped(work, machine, stages, replicas, link)]
    turns = _best(_piped(work, machine, pods, 1, link, models=2)) if pods > 1 else None
    return Ways(
        pods,
        link,
        data.alone,
        data.spmd_overlap,
        data.pathways_overlap,
        pipeline,
        _best(iter(both)),
        data.alone + in_common,
        turns.seconds if turns else None,
    )


def smallest_batch(work: Workload) -> Workload:
    """The same step with one sequence per data rank."""
    size = work.layout.shards("batch")
    return replace(work, batch=size, micro_batch=size)


def _best(candidates: Iterator[Piped]) -> Piped | None:
    return min(candidates, key=lambda piped: piped.seconds, default=None)


def _piped(
    work: Workload, machine: Machine, stages: int, replicas: int, link: float, models: int = 1
) -> Iterator[Piped]:
    """Every pipeline of ``stages`` pods that fits, with ``replicas`` of it.

    With two models, a step of each is computed, the micro-batches of one after those of the other; per model.
    """
    size, batch = work.layout.shards("batch"), work.batch * stages
    while batch % size == 0 and batch // size >= stages:
        for interleave in INTERLEAVE:
            micro_batches = batch // size
            if stages * interleave > work.model.layers or (interleave > 1 and micro_batches % stages):
                continue
            for once in (True, False):
                pipeline = Pipeline(stages, interleave, gather_once=once)
                step = pipeline.apply(replace(work, batch=models * batch, micro_batch=size, sharded_sends=True))
                memory = max(_bytes(kinds, models) for kinds in memory_by_stage(step, machine))
                if memory > USABLE * machine.memory:
                    continue
                seconds = step_time(step, machine, HIDDEN, send=link * GB / (machine.host_devices or 1)).seconds
                seconds = seconds / models + _gradients(step, machine, replicas, link, seconds / models)
                programs = 2 * micro_batches * interleave * stages * replicas
                dispatch = programs * DISPATCH * work.devices
                yield Piped(seconds, stages, interleave, micro_batches, programs, dispatch)
        size *= 2


def _bytes(kinds: dict[str, int], models: int) -> int:
    """Memory of a device with the state of several models; activations are of as many micro-batches as before."""
    state = sum(size for kind, size in kinds.items() if kind not in ("activations", "temporaries"))
    return sum(kinds.values()) + (models - 1) * state


def _gradients(step: Workload, machine: Machine, replicas: int, link: float, seconds: float) -> float:
    """Seconds to add a stage's gradients over replicas that the backward pass does not hide."""
    ring = 2 * (replicas - 1) / replicas * host_bytes(step, machine) / (link * GB)
    return exposed(ring, BACKWARD * seconds / step.micro_batches, step.layers)

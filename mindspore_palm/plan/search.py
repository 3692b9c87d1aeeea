"""Which meshes fit a number of devices, best first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.model.initial import placements
from mindspore_palm.parallel.check import check_layout
from mindspore_palm.plan.machines import Machine
from mindspore_palm.plan.step_time import StepTime, step_time
from mindspore_palm.plan.workload import Workload
from mindspore_palm.train.memory import memory_by_kind

RECOMPUTE = ("none", "attention", "block")
USABLE = 0.96
"""Share of a device's memory that a network may take; XLA keeps 1.25 of a TPU v4's 32 GiB."""


@dataclass(frozen=True)
class Candidate:
    """A way to lay a run on devices."""

    settings: Settings
    time: StepTime
    memory: dict[str, int]
    """Bytes of a device, by kind."""

    @property
    def bytes(self) -> int:
        """Bytes of a device."""
        return sum(self.memory.values())


def search(settings: Settings, machine: Machine, target: str, devices: int) -> list[Candidate]:
    """Candidates whose sizes fit and whose memory is there, by predicted MFU, best first.

    Tried: pods as set; every cut of a pod's devices into data and model; every recompute setting; every micro batch
    that is a power of two times the data shards, up to the batch.

    Raises:
        UserError: none fits; says whether sizes or memory are in the way.
    """
    shaped = [s for s in _variants(settings, devices) if _fits(s, target)]
    if not shaped:
        raise UserError(
            f"no mesh of {devices:,} devices fits model.heads = {settings.model.heads}, the vocabulary and the batch; "
            "change --devices, train.batch_size or parallel.pods"
        )
    found = [candidate(s, machine, target) for s in shaped]
    there = USABLE * machine.memory
    fitting = [c for c in found if c.bytes <= there]
    if not fitting:
        least = min(found, key=lambda c: c.bytes)
        raise UserError(
            f"on {devices:,} devices, the smallest of {len(found)} layouts takes {least.bytes / 1e9:,.1f} GB of a "
            f"device, and {there / 1e9:,.1f} GB are there; take more --devices or another --machine"
        )
    return sorted(fitting, key=lambda c: (-c.time.mfu, c.bytes))


def candidate(settings: Settings, machine: Machine, target: str) -> Candidate:
    """Time and memory of settings on a machine."""
    work = Workload.of(settings, target)
    return Candidate(
        settings, step_time(work, machine), memory_by_kind(settings, work.layout, machine.fused_elementwise)
    )


def _variants(settings: Settings, devices: int) -> Iterator[Settings]:
    pods = settings.parallel.pods
    if devices % pods:
        return
    batch = settings.train.batch_ramp()[-1][1]
    in_pod = devices // pods
    for model, recompute in product((n for n in range(1, in_pod + 1) if in_pod % n == 0), RECOMPUTE):
        data = in_pod // model
        vocab_multiple = data * model
        micro = pods * data
        while batch % micro == 0:
            yield settings.model_copy(
                update={
                    "model": settings.model.model_copy(update={"vocab_multiple": vocab_multiple}),
                    "train": settings.train.model_copy(update={"micro_batch": micro if micro < batch else 0}),
                    "parallel": settings.parallel.model_copy(
                        update={"data": data, "model": model, "recompute": recompute}
                    ),
                }
            )
            micro *= 2


def _fits(settings: Settings, target: str) -> bool:
    if settings.model.heads % settings.parallel.model:
        return False
    layout = Workload.of(settings, target).layout
    one_layer = settings.model.model_copy(update={"layers": 1})
    try:
        check_layout(settings, layout, placements(one_layer, layout))
    except UserError:
        return False
    return True

"""How a plan cuts a network into the stages of a pipeline, beside the mesh of each stage."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mindspore_palm.config import Settings
from mindspore_palm.cost.stage_memory import StageMemory
from mindspore_palm.cost.workload import Workload
from mindspore_palm.plan.machines import Machine
from mindspore_palm.plan.timeline import most_held, played

PLAYED = {"gpipe": "gpipe", "zero_bubble_v": "zb-v"}
"""Names of MindSpore's schedules in ``plan/schedules.py``; the others are 1f1b as long as sequences are not split."""


@dataclass(frozen=True)
class Pipeline:
    """The pipeline of a candidate. Its mesh (pods, data, model) and micro-batches are those of its settings."""

    stages: int = 1
    """Devices one after the other."""
    interleave: int = 1
    """Stages of each of them."""
    schedule: str = "1f1b"
    """Order in which they compute: a name of ``plan/schedules.py``."""
    gather_once: bool = True
    """Whether fully sharded weights stay gathered during a step."""
    sequence_parallel: bool = False
    """Whether norms and residuals are sharded over model."""

    @classmethod
    def of(cls, settings: Settings) -> Pipeline:
        """The pipeline of a run."""
        parallel = settings.parallel
        return cls(parallel.stages, parallel.interleave, PLAYED.get(parallel.schedule, "1f1b"))

    def apply(self, work: Workload) -> Workload:
        """The step with this pipeline."""
        return replace(
            work,
            pipeline=self.stages,
            chunks=self.interleave,
            schedule=self.schedule,
            gather_once=self.gather_once,
            sequence_parallel=self.sequence_parallel,
        )


NO_PIPELINE = Pipeline()


def memory_by_stage(work: Workload, machine: Machine) -> tuple[dict[str, int], ...]:
    """Bytes on each device of a pipeline, first to last, by kind; the sum of a device's kinds is what it needs.

    Raises:
        UserError: the schedule cannot have these micro-batches.
    """
    formulas = StageMemory(work, machine.fused_elementwise, machine.fused_attention)
    schedule, *_ = played(work.schedule, work.pipeline, work.chunks, work.micro_batches)
    held = most_held(work.schedule, work.pipeline, work.chunks, work.micro_batches)
    copies = schedule.copies  # a micro-batch visits one of a device's stages, if these are copies of others
    return tuple(formulas.by_kind(schedule.stages_of(device), held[device] / copies) for device in range(work.pipeline))

"""Search for the meshes that fit a number of devices, best first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import get_args

from mindspore_palm.config import Settings
from mindspore_palm.cost.memory import memory_by_kind
from mindspore_palm.cost.workload import Workload
from mindspore_palm.errors import UserError
from mindspore_palm.model.weights import placements
from mindspore_palm.palm_config import Recompute
from mindspore_palm.parallel.axes import PER_MICRO_BATCH, PER_STEP, PODS_PER_STEP, Layout
from mindspore_palm.parallel.check import SERVER, check_layout, find_misfit, partitions_for
from mindspore_palm.parallel.mesh import DATA, MODEL
from mindspore_palm.plan.machines import Machine
from mindspore_palm.plan.pipeline import NO_PIPELINE, Pipeline, memory_by_stage
from mindspore_palm.plan.step_time import StepTime, step_time

USABLE = 0.96
"""Share of a device's memory that a program may use; XLA reserves 1.25 of a TPU v4's 32 GiB."""
NEAREST = 12  # other numbers of devices that are tried if no mesh fits the one asked for


@dataclass(frozen=True)
class Candidate:
    """Settings that place a run on devices, with their predicted cost."""

    settings: Settings
    time: StepTime
    memory: dict[str, int]
    """Bytes per device, by kind; of a pipeline, of the device that needs the most."""
    pipeline: Pipeline = NO_PIPELINE
    by_stage: tuple[dict[str, int], ...] = ()
    """Of a pipeline, bytes by kind for each device, first to last."""

    @property
    def bytes(self) -> int:
        """Bytes per device."""
        return sum(self.memory.values())


def search(settings: Settings, machine: Machine, devices: int) -> list[Candidate]:
    """Candidates whose sizes and memory fit, by predicted MFU, best first.

    Tried: pods as set; every split of a pod's devices into data and model; every recompute setting; micro-batches of
    one sequence per data rank, two, four and so on, up to the full batch. The vocabulary is padded to fit.

    Raises:
        UserError: none fits; names the reason.
    """
    shaped, reason = _shaped(settings, machine, devices)
    if not shaped:
        if not partitions_for(devices):
            reason = f"MindSpore partitions for 1, 2, 4 or a multiple of {SERVER}"
        other = _count_near(settings, machine, devices)
        fix = f"set --devices to {other}" if other else "change train.batch_size or parallel.pods"
        raise UserError(f"no mesh of {devices:,} devices fits{f': {reason}' if reason else ''}; {fix}")
    candidates = [candidate(s, machine) for s in shaped]
    usable = USABLE * machine.memory
    fitting = [c for c in candidates if c.bytes <= usable]
    if not fitting:
        least = min(candidates, key=lambda c: c.bytes)
        count = f"{devices:,} device{'s' * (devices > 1)}"
        raise UserError(
            f"on {count}, the smallest of {len(candidates)} layouts takes {least.bytes / 1e9:,.1f} GB per device, and "
            f"{usable / 1e9:,.1f} GB are usable; take more --devices or another --machine"
        )
    return sorted(fitting, key=lambda c: (-c.time.mfu, c.bytes))


def candidate(settings: Settings, machine: Machine) -> Candidate:
    """The predicted time and memory of settings on a machine."""
    pipeline = Pipeline.of(settings)
    work = pipeline.apply(Workload.of(settings, machine.target))
    time = step_time(work, machine)
    if pipeline.stages > 1:
        by_stage = memory_by_stage(work, machine)
        heaviest = max(by_stage, key=lambda kinds: sum(kinds.values()))
        return Candidate(settings, time, heaviest, pipeline, by_stage)
    memory = memory_by_kind(settings, work.layout, machine.fused_elementwise, machine.fused_attention)
    return Candidate(settings, time, memory)


def check_fits(settings: Settings, machine: Machine) -> None:
    """Checks that sizes fit the mesh, and that the mesh fits the machine.

    Raises:
        UserError: names setting, sizes and what to change.
    """
    layout = Workload.of(settings, machine.target).layout
    if text := _machine_problem(layout, machine):
        raise UserError(text)
    check_layout(settings, layout, placements)


def _shaped(settings: Settings, machine: Machine, devices: int) -> tuple[list[Settings], str]:
    """The variants whose sizes fit, and why another does not."""
    shaped, reason = [], ""
    for variant in _variants(settings, devices):
        misfit = problem(variant, machine)
        if not misfit:
            shaped.append(variant)
        reason = misfit or reason
    return shaped, reason


def _count_near(settings: Settings, machine: Machine, devices: int) -> int | None:
    """The nearest number of devices for which a mesh fits, of the nearest dozen."""
    pods = settings.parallel.pods
    counts = (n for n in range(pods, 2 * devices + SERVER * pods + 1, pods) if partitions_for(n) and n != devices)
    nearest = sorted(counts, key=lambda n: (abs(n - devices), n))[:NEAREST]
    return next((n for n in nearest if _shaped(settings, machine, n)[0]), None)


def problem(settings: Settings, machine: Machine) -> str:
    """The first violation of the rules of ``check_fits``, without advice; empty if there is none."""
    layout = Workload.of(settings, machine.target).layout
    if text := _machine_problem(layout, machine):
        return text
    misfit = find_misfit(settings, layout, placements)
    return misfit.text if misfit else ""


def _machine_problem(layout: Layout, machine: Machine) -> str:
    if machine.target == "CPU" and layout.compute_dtype != "float32":
        return f"train.compute_dtype = {layout.compute_dtype}: a CPU's peak is for float32 matmuls; set float32 or auto"
    if machine.target != "CPU" and layout.compute_dtype == "float32":
        return "train.compute_dtype = float32: a machine's peak is for 16-bit matmuls; set bfloat16 or float16"
    in_pod = layout.mesh.sizes[DATA] * layout.mesh.sizes[MODEL]
    if machine.torus and in_pod > prod(machine.torus):
        return (
            f"parallel.data x parallel.model = {in_pod:,}, and a pod of {machine.title} has {prod(machine.torus):,} "
            "devices; raise parallel.pods"
        )
    return ""


def _variants(settings: Settings, devices: int) -> Iterator[Settings]:
    """Settings to try, without those that are invalid because a batch ramp does not divide."""
    pods = settings.parallel.pods
    sizes = [size for _, size in settings.train.batch_ramp()]
    in_pod = devices // pods
    for model, recompute in product((n for n in range(1, in_pod + 1) if in_pod % n == 0), get_args(Recompute)):
        if settings.model.heads % model:
            continue
        least = pods * in_pod // model  # one sequence per device
        tried = [least << n for n in range(max(sizes).bit_length()) if all(size % (least << n) == 0 for size in sizes)]
        for micro_batch in [0, *tried] if tried else []:
            if micro_batch == max(sizes):  # the same as 0
                continue
            for reduced in _reductions(settings, micro_batch, pods):
                mesh = {"data": in_pod // model, "model": model, "recompute": recompute, "reduce_gradients": reduced}
                yield settings.model_copy(
                    update={
                        "model": settings.model.model_copy(update={"vocab_multiple": in_pod}),
                        "train": settings.train.model_copy(update={"micro_batch": micro_batch}),
                        "parallel": settings.parallel.model_copy(update=mesh),
                    }
                )


def _reductions(settings: Settings, micro_batch: int, pods: int) -> tuple[str, ...]:
    """How often gradients may be reduced: as set, or if that is auto, in all ways that make a difference."""
    asked = settings.parallel.reduce_gradients
    if asked != "auto" or not micro_batch:
        return (asked,)
    return (PER_MICRO_BATCH, PER_STEP, PODS_PER_STEP) if pods > 1 else (PER_MICRO_BATCH, PER_STEP)

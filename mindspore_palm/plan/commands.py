"""The answers of ``palm plan``: each function computes, draws, and returns the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mindspore_palm.config import Settings
from mindspore_palm.cost.workload import Workload
from mindspore_palm.errors import UserError
from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.plan import charts as drawn
from mindspore_palm.plan.crossover import crossings
from mindspore_palm.plan.fit import MeasuredStep, describe_fit, fit
from mindspore_palm.plan.host import measure_bandwidth
from mindspore_palm.plan.machines import GB, load_machine
from mindspore_palm.plan.pipeline import Pipeline, memory_by_stage
from mindspore_palm.plan.pods import LINKS, PODS, dispatch_seconds, host_bytes, one_pod, span
from mindspore_palm.plan.published import LENGTH, PALM, STEP_SECONDS, TWO_PODS, predictions, systems
from mindspore_palm.plan.published_runs import remarks, runs
from mindspore_palm.plan.report import (
    describe_plan,
    describe_pods,
    describe_published,
    describe_schedules,
    describe_search,
    describe_stage_memory,
    write_plan,
)
from mindspore_palm.plan.report_ways import describe_crossings, describe_ways
from mindspore_palm.plan.schedules import SCHEDULES
from mindspore_palm.plan.search import Candidate, candidate, check_fits
from mindspore_palm.plan.search_pipelines import search_all
from mindspore_palm.plan.spanning import ALL_LINKS, smallest_batch, ways
from mindspore_palm.plan.step_time import step_time
from mindspore_palm.plan.timeline import StageTimes, Timeline, play

MOST_DEVICES = 1_000_000
MOST_TASKS = 500_000  # of a timeline: some seconds


def published() -> str:
    """The paper's table, and published times beside the cost model's."""
    return describe_published(systems(), predictions(), runs(), remarks())


def plan(settings: Settings, machine_name: str, charts: Path | None = None, json: Path | None = None) -> str:
    """Plan of a run on a machine.

    Raises:
        UserError: there is no such machine, or sizes do not fit it.
    """
    machine = load_machine(machine_name)
    check_fits(settings, machine)
    work = Pipeline.of(settings).apply(Workload.of(settings, machine.target))
    one, hidden = candidate(settings, machine), step_time(work, machine, overlap=1.0)
    if charts:
        as_published = is_palms(work, machine_name)
        times = {"nothing hidden": one.time, "data axis hidden": hidden}
        drawn.draw_step(times, charts / "step.png", STEP_SECONDS if as_published else None)
        if machine.torus:
            spans = [span(one_pod(work), machine, pods, machine.host_gb_s) for pods in PODS]
            drawn.draw_scaling(spans, charts / "scaling.png", (2, TWO_PODS) if as_published else None)
    if json:
        write_plan(json, machine, [one])
    return describe_plan(settings, machine, one, hidden, work)


def fit_machine(where: str, settings: Settings, steps: Sequence[MeasuredStep], machine_name: str | None) -> str:
    """A machine file that predicts a run, with what was fitted and how well as comments.

    Args:
        where: the run, for messages.
        settings: of the run.
        steps: that it took.
        machine_name: to take over all but the efficiencies from; None for the CPU of this machine.

    Raises:
        UserError: there is no such machine, or the steps cannot be used.
    """
    base = load_machine(machine_name) if machine_name else None
    bandwidth = 0.0 if base else measure_bandwidth()
    return describe_fit(where, settings, fit(where, settings, steps, base, bandwidth), machine_name)


def search_meshes(
    settings: Settings, machine_name: str, devices: int | None, charts: Path | None = None, json: Path | None = None
) -> str:
    """Meshes of a number of devices, best first.

    Raises:
        UserError: there is no such machine, or no mesh fits.
    """
    machine = load_machine(machine_name)
    count = _count(settings, devices)
    candidates, fitting = search_all(settings, machine, count)
    if charts:
        drawn.draw_meshes(candidates, charts / "meshes.png")
    if json:
        write_plan(json, machine, candidates)
    return describe_search(candidates, fitting)


def pods(settings: Settings, machine_name: str, charts: Path | None = None) -> str:
    """SPMD or Pathways, for 1 to 8 pods and links of 1 to 100 GB/s per host, each pod with its share of the batch.

    Before that, the ways to use several pods: data parallel, pipelines, both, and several models.

    Raises:
        UserError: the machine has no pods, or sizes do not fit it.
    """
    machine = load_machine(machine_name)
    if not machine.torus:
        raise UserError(f"--pods compares pods with a torus inside; {machine_name} has none: take tpu-v4 or tpu-v3")
    check_fits(settings, machine)
    all_pods = Workload.of(settings, machine.target)
    work, host_gb_s = one_pod(all_pods), machine.host_gb_s
    spans = {(count, link): span(work, machine, count, link) for count in PODS for link in (*LINKS, host_gb_s)}
    as_published = is_palms(all_pods, machine_name)
    if charts:
        drawn.draw_pods(spans, host_gb_s, charts / "pods.png", TWO_PODS if as_published else None)
    slow = work.gradient_reductions * host_bytes(work, machine) / (0.05 * spans[1, host_gb_s].alone) / GB
    grids = {
        one.batch: {(n, link): ways(one, machine, n, link) for n in PODS for link in (*ALL_LINKS, host_gb_s)}
        for one in (work, smallest_batch(work))
    }
    if charts:
        drawn.draw_ways(grids, charts / "ways.png")
    published = TWO_PODS if as_published else None
    answers = describe_pods(spans, host_gb_s, dispatch_seconds(2, work.devices), slow, published)
    return f"{describe_ways(grids, host_gb_s)}\n\n{answers}"


def crossover(settings: Settings, machine_name: str, devices: int | None) -> str:
    """Where a pipeline overtakes meshes without one.

    Raises:
        UserError: there is no such machine, or nothing fits.
    """
    machine = load_machine(machine_name)
    return describe_crossings(crossings(settings, machine, _count(settings, devices)))


def schedules(devices: int, micro_batches: int, charts: Path | None = None) -> str:
    """Schedules of a pipeline of equal stages, whose three tasks take the same time.

    Raises:
        UserError: there is no pipeline of so many devices and micro-batches.
    """
    if devices < 2 or micro_batches < 1 or devices * micro_batches > MOST_TASKS:
        raise UserError(
            f"--schedules {devices} {micro_batches}: a pipeline has 2 devices or more and 1 micro-batch or more, and "
            f"their product is {MOST_TASKS:,} at most"
        )
    timelines: list[Timeline] = []
    refused: dict[str, str] = {}
    for name, make in SCHEDULES.items():
        try:
            schedule = make(devices, micro_batches)
        except UserError as error:
            refused[name] = str(error)
            continue
        part = 1 / schedule.chunks
        timelines.append(play(schedule, [StageTimes(part, part, part)] * schedule.stages))
    if charts:
        drawn.draw_schedules(timelines, charts / "schedules.png")
    return describe_schedules(timelines, refused, micro_batches)


def schedules_of(settings: Settings, machine_name: str, devices: int, micro_batches: int) -> str:
    """Schedules of a network's pipeline: step time, and memory by stage in bytes.

    The mesh and the micro-batch are those of the settings, for each stage.

    Raises:
        UserError: sizes do not fit the machine, or there is no pipeline of so many devices and micro-batches.
    """
    machine = load_machine(machine_name)
    check_fits(settings, machine)
    if not 2 <= devices <= settings.model.layers or micro_batches < 1 or devices * micro_batches > MOST_TASKS:
        raise UserError(
            f"--schedules {devices} {micro_batches}: a pipeline of {settings.model.layers} layers has 2 to "
            f"{settings.model.layers} devices and 1 micro-batch or more, and their product is {MOST_TASKS:,} at most"
        )
    base = Workload.of(settings, machine.target)
    base = replace(base, batch=base.micro_batch * micro_batches)
    found: dict[str, Candidate] = {}
    refused: dict[str, str] = {}
    for name in SCHEDULES:
        try:
            chunks = SCHEDULES[name](devices, micro_batches).chunks
            pipeline = Pipeline(devices, chunks, name)
            work = pipeline.apply(base)
            by_stage = memory_by_stage(work, machine)
        except UserError as error:
            refused[name] = str(error)
            continue
        heaviest = max(by_stage, key=lambda kinds: sum(kinds.values()))
        found[name] = Candidate(settings, step_time(work, machine), heaviest, pipeline, by_stage)
    return describe_stage_memory(found, refused, machine, micro_batches)


def _count(settings: Settings, devices: int | None) -> int:
    """The devices to search meshes for: as asked, or those of the settings' own mesh.

    Raises:
        UserError: there are none, too many, or they are no equal pods.
    """
    count = devices if devices is not None else settings.parallel.devices
    if not 1 <= count <= MOST_DEVICES:
        raise UserError(f"--devices {count}: set it to 1 or more, and to {MOST_DEVICES:,} at most")
    if count % settings.parallel.pods:
        raise UserError(
            f"--devices {count} cannot be split into parallel.pods = {settings.parallel.pods} equal pods; change one"
        )
    return count


def is_palms(work: Workload, machine_name: str) -> bool:
    """Whether this is PaLM 540B's own step: network, mesh, batch and machine."""
    network = work.model.parameter_count() == PALM.parameter_count() and work.layout.mesh == Mesh(2, 256, 12)
    return network and machine_name == "tpu-v4" and work.tokens_per_step == 2048 * LENGTH

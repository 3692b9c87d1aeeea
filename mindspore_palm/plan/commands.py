"""What ``run/plan.py`` answers: each function computes, draws, and returns the text."""

from __future__ import annotations

from pathlib import Path

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.model.initial import placements
from mindspore_palm.parallel.check import check_layout
from mindspore_palm.plan import charts as drawn
from mindspore_palm.plan.machines import GB, load_machine
from mindspore_palm.plan.pods import LINKS, PODS, host_bytes, one_pod, span
from mindspore_palm.plan.published import LENGTH, PALM, predictions, systems
from mindspore_palm.plan.report import (
    describe_plan,
    describe_pods,
    describe_published,
    describe_search,
    write_plan,
)
from mindspore_palm.plan.search import candidate, search
from mindspore_palm.plan.step_time import step_time
from mindspore_palm.plan.workload import Workload

PALM_LINK, PALM_SPEEDUP = 6.59, 1.95
"""GB/s of a host between PaLM's pods, and how many times one pod the two were."""


def published() -> str:
    """The article's table, and published times beside the cost model's."""
    return describe_published(systems(), predictions())


def plan(settings: Settings, machine_name: str, charts: Path | None = None, json: Path | None = None) -> str:
    """A run on a machine.

    Raises:
        UserError: there is no such machine, or sizes do not fit.
    """
    machine = load_machine(machine_name)
    target = target_of(machine_name)
    work = Workload.of(settings, target)
    check_layout(settings, work.layout, placements(settings.model.model_copy(update={"layers": 1}), work.layout))
    found, hidden = candidate(settings, machine, target), step_time(work, machine, overlap=1.0)
    if charts:
        is_palm = machine_name == "tpu-v4" and work.tokens_per_step == 2048 * LENGTH and work.devices == 6144
        same = is_palm and settings.model.parameter_count() == PALM.parameter_count()
        times = {"nothing hidden": found.time, "data axis hidden": hidden}
        drawn.draw_step(times, charts / "step.png", 17.60 if same else None)
        if machine.torus:
            spans = [span(one_pod(work), machine, pods, machine.host_gb_s) for pods in PODS]
            drawn.draw_scaling(spans, charts / "scaling.png", (2, PALM_SPEEDUP) if same else None)
    if json:
        write_plan(json, machine, [found])
    return describe_plan(settings, machine, found, hidden, work)


def search_meshes(
    settings: Settings, machine_name: str, devices: int | None, charts: Path | None = None, json: Path | None = None
) -> str:
    """The meshes of a number of devices, best first.

    Raises:
        UserError: there is no such machine, or no mesh fits.
    """
    machine = load_machine(machine_name)
    count = devices if devices is not None else settings.parallel.devices
    if count < 1 or count % settings.parallel.pods:
        raise UserError(
            f"--devices {count} cannot be cut into parallel.pods = {settings.parallel.pods} equal pods; change one"
        )
    found = search(settings, machine, target_of(machine_name), count)
    if charts:
        drawn.draw_meshes(found, charts / "meshes.png")
    if json:
        write_plan(json, machine, found)
    return describe_search(found)


def pods(settings: Settings, machine_name: str, charts: Path | None = None) -> str:
    """SPMD or Pathways, for 1 to 8 pods and links of 1 to 100 GB/s a host.

    Raises:
        UserError: the machine has no pods.
    """
    machine = load_machine(machine_name)
    if not machine.torus:
        raise UserError(f"--pods compares pods with a torus inside; {machine_name} has none: take tpu-v4 or tpu-v3")
    work = one_pod(Workload.of(settings, "GPU"))
    places = {(2, link) for link in LINKS} | {(count, PALM_LINK) for count in PODS}
    spans = {(count, link): span(work, machine, count, link) for count, link in places}
    if charts:
        drawn.draw_pods(spans, charts / "pods.png", (PALM_LINK, PALM_SPEEDUP))
    slow = host_bytes(work, machine) / (0.05 * spans[1, PALM_LINK].alone) / GB
    return describe_pods(spans, PALM_LINK, PALM_SPEEDUP, slow)


def target_of(machine_name: str) -> str:
    """For which kind of device MindSpore would compile."""
    return "Ascend" if "ascend" in Path(machine_name).stem.lower() else "GPU"

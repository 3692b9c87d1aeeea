"""Cost of a run as text and as JSON: sizes, memory, time, and published numbers beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mindspore_palm.config import PaLMConfig, Settings
from mindspore_palm.cost.memory import readable
from mindspore_palm.cost.workload import Workload
from mindspore_palm.files import write_json
from mindspore_palm.parallel.axes import PER_STEP, PODS_PER_STEP
from mindspore_palm.plan.machines import Machine
from mindspore_palm.plan.pods import LINKS, PODS, Span
from mindspore_palm.plan.published import LENGTH, PUBLISHED_FLOPS, RECOMPUTED, Prediction, System
from mindspore_palm.plan.search import USABLE, Candidate
from mindspore_palm.plan.step_time import StepTime, step_time
from mindspore_palm.plan.timeline import Timeline
from mindspore_palm.tables import listing, table

DAY = 86400.0
REDUCED = {PER_STEP: "all", PODS_PER_STEP: "over pods"}  # gradients, of a search
WAYS = {
    "spmd": "One SPMD program",
    "spmd_overlap": "One SPMD program, all-reduce overlapped with the backward pass",
    "pathways": "One program per pod (Pathways)",
    "pathways_overlap": "One program per pod, transfers overlapped with the backward pass",
}
ANSWER = """\
One pod alone takes {alone:.2f} s per step. PaLM's two pods, with one program each, take {pathways:.2f} s, which is
{times:.2f} times the speed of one pod (published: {published:g}). One SPMD program over both would take {spmd:.2f} s:
with two pods, each sends its gradients to the other once, whoever controls them. So the paper is right that PaLM's
speed owes nothing to Pathways, on these conditions:
- only data parallelism crosses pods, and a step is much longer than a controller's dispatch of {dispatch:.0f} ms;
- pods are few: 8 that send all gradients to each other take {eight_pathways:.2f} s, in a ring {eight_spmd:.2f} s;
- hosts have more than {slow:.1f} GB/s; below that, the gradients of two pods take over 5 % of a step, unless they are
  sent during the backward pass ({hidden:.2f} s per step at {slowest:g} GB/s).
With Pathways, two pods could be one job: JAX's own programs could not then span them."""


def describe_plan(settings: Settings, machine: Machine, candidate: Candidate, hidden: StepTime, work: Workload) -> str:
    """Parameters, FLOPs, memory, step time, MFU and HFU of a run on a machine.

    Args:
        settings: of the run.
        machine: to plan for.
        candidate: its time, with nothing hidden, and its memory.
        hidden: its time if matmuls hide all collectives of the data axis.
        work: the step.
    """
    model, time, length = settings.model, candidate.time, settings.data.seq_len
    kinds = ", ".join(f"{name} {count:,}" for name, count in model.parameters_by_kind().items())
    hardware = model.hardware_flops_per_token(length, work.recompute)
    fits = "fits" if candidate.bytes <= USABLE * machine.memory else "does not fit"
    memory = f"{readable(candidate.bytes)} of {readable(machine.memory)} per device, of which {USABLE:.0%} are usable"
    rate = work.tokens_per_step / time.seconds
    lines = {
        "machine": machine.title,
        "mesh": f"{_mesh(work)} = {work.devices:,} devices, recompute {work.recompute}, {_batch(work)}",
        "parameters": f"{model.parameter_count():,} ({kinds})",
        "FLOPs/token": f"{_flops(model.flops_per_token(length))}; {_flops(hardware)} with recomputation",
        "memory": f"{memory}: {fits}",
        "step": f"{_seconds(time.seconds)} ({_seconds(hidden.seconds)} with data-axis collectives hidden by matmuls)",
        "tokens/s": f"{rate:,.0f}",
        "MFU": f"{time.mfu:.1%} ({hidden.mfu:.1%})",
        "HFU": f"{time.hfu:.1%} ({hidden.hfu:.1%})",
        "run": f"{_run_seconds(settings, machine) / DAY:,.3g} days for {settings.train.steps:,} steps",
    }
    sizes = [(kind, f"{size / 1e9:,.3f}") for kind, size in candidate.memory.items()]
    share = [
        (part, _seconds(seconds), f"{seconds / time.seconds:.1%}")
        for part, seconds in time.parts.items()
        if seconds > 0
    ]
    return "\n\n".join([listing(lines), table(("memory per device", "GB"), sizes), table(("step time", "", ""), share)])


def describe_schedules(timelines: Sequence[Timeline], refused: Mapping[str, str], micro_batches: int) -> str:
    """Bubble and activations of each schedule, and why the others do not fit.

    Args:
        timelines: of the schedules.
        refused: names of the others, and why.
        micro_batches: of a step.
    """
    rows = []
    for timeline in timelines:
        schedule = timeline.schedule
        held = (f"{timeline.held(device):g}" for device in (0, schedule.devices - 1))
        share = f"{timeline.bubble / timeline.seconds:.1%}"
        rows.append((schedule.name, f"{timeline.bubble:g}", share, *held, f"{schedule.copies}x"))
    devices = timelines[0].schedule.devices
    notes = [
        f"{devices} devices with equal stages, {micro_batches} micro-batches.",
        "Bubble: of a micro-batch, a device's forward pass, backward pass and weights take a unit of time each.",
        "Held: the most micro-batches whose activations a device holds.",
        *(f"No {name}: {why}" for name, why in refused.items()),
    ]
    head = ("schedule", "bubble", "of the step", "held by the first device", "by the last", "weights")
    return "\n\n".join([table(head, rows), "\n".join(notes)])


def describe_stage_memory(
    candidates: Mapping[str, Candidate], refused: Mapping[str, str], machine: Machine, micro_batches: int
) -> str:
    """Step time of each schedule of a network's pipeline, and memory of the stages of each.

    Args:
        candidates: by schedule.
        refused: names of the other schedules, and why.
        machine: planned for.
        micro_batches: of a step.
    """
    rows, grids = [], []
    for name, one in candidates.items():
        bubble = one.time.parts["pipeline"] / one.time.seconds
        fits = "fits" if one.bytes <= USABLE * machine.memory else "does not fit"
        ends = (_gigabytes(one.by_stage[stage]) for stage in (0, -1))
        rows.append((name, _seconds(one.time.seconds), f"{one.time.mfu:.1%}", f"{bubble:.1%}", *ends, fits))
        grids.append(f"{name}, GB per device\n{describe_stages(one.by_stage)}")
    head = ("schedule", "step", "MFU", "bubble and sends", "GB of the first", "of the last", "")
    notes = [f"{micro_batches} micro-batches on {machine.title}"]
    notes += [f"No {name}: {why}" for name, why in refused.items()]
    return "\n\n".join([table(head, rows), "\n".join(notes), *grids])


def describe_search(candidates: Sequence[Candidate], fitting: int, most: int = 10) -> str:
    """The best candidates as a table, and memory by stage of the best pipeline.

    Args:
        candidates: best first.
        fitting: layouts that fit.
        most: rows.
    """
    rows = []
    for candidate in candidates[:most]:
        parallel, time, pipeline = candidate.settings.parallel, candidate.time, candidate.pipeline
        micro = candidate.settings.train.micro_batch or candidate.settings.train.batch_ramp()[-1][1]
        rows.append(
            (
                f"{parallel.pods} x {parallel.data} x {parallel.model}",
                f"{pipeline.stages} of {pipeline.interleave}" if pipeline.stages > 1 else "",
                parallel.recompute,
                REDUCED.get(candidate.settings.parallel.reduce_gradients, "") if pipeline.stages == 1 else "",
                "model" if pipeline.sequence_parallel else "",
                f"{micro:,}",
                f"{candidate.bytes / 1e9:.1f}",
                _seconds(time.seconds),
                f"{time.mfu:.1%}",
                f"{time.hfu:.1%}",
            )
        )
    head = (
        "pods x data x model",
        "stages",
        "recompute",
        "reduced once",
        "norms over",
        "micro-batch",
        "GB per device",
        "step",
        "MFU",
        "HFU",
    )
    more = f"\n{fitting:,} layouts fit; the best {len(rows)} are shown" if fitting > most else ""
    shown = [table(head, rows) + more]
    piped = [candidate for candidate in candidates[:most] if candidate.by_stage]
    if piped:
        shown.append(f"Memory by stage of the best pipeline, GB per device\n{describe_stages(piped[0].by_stage)}")
    return "\n\n".join(shown)


def describe_stages(by_stage: Sequence[Mapping[str, int]], most: int = 8) -> str:
    """Memory of each stage of a pipeline by kind, in GB per device; of many stages, the first and the last."""
    kinds = list(dict.fromkeys(kind for memory in by_stage for kind in memory))
    count = len(by_stage)
    shown = range(count) if count <= most else (0, 1, count // 2, count - 2, count - 1)
    rows = [
        (f"{stage + 1}", *(f"{by_stage[stage].get(kind, 0) / 1e9:.2f}" for kind in kinds), _gigabytes(by_stage[stage]))
        for stage in shown
    ]
    return table(("stage", *kinds, "sum"), rows)


def _gigabytes(memory: Mapping[str, int]) -> str:
    return f"{sum(memory.values()) / 1e9:.2f}"


def describe_published(
    systems: Sequence[System], predictions: Sequence[Prediction], runs: Sequence[Prediction], remarks: Sequence[str]
) -> str:
    """The paper's table, and published times beside the cost model's.

    Args:
        systems: of the table.
        predictions: for two of them.
        runs: other published runs.
        remarks: on the runs.
    """
    rows = []
    for system in systems:
        ours_hfu = f"{system.our_hfu:.1f}" if system.our_hfu is not None else ""
        count = f"{system.devices:,} " if system.devices > 1 else ""
        rows.append(
            (
                system.name,
                f"{count}{system.accelerators}, {system.peak_tflops:g} T",
                system.throughput,
                f"{system.mfu:g}",
                f"{system.our_mfu:.1f}",
                f"{system.our_mfu - system.mfu:+.1f}",
                f"{system.hfu:g}" if system.hfu is not None else "",
                ours_hfu,
                f"{system.our_hfu - system.hfu:+.1f}" if system.our_hfu is not None else "",
            )
        )
    head = ("", "accelerators", "published throughput", "MFU %", "ours", "error", "HFU %", "ours", "error")
    notes = [f"{system.name}: {system.note}" for system in systems if system.note]
    palm = systems[-1]
    bare = palm.utilisation(6 * palm.parameters)
    notes.append(f"{palm.name} without attention: MFU {bare:.1f} %, published 45.7 %")
    sizes = [(name, PaLMConfig.from_preset(name), recompute) for name, recompute in RECOMPUTED.items()]
    flops = [
        (
            name,
            f"{PUBLISHED_FLOPS[name][0]}",
            f"{config.flops_per_token(LENGTH) / 1e12:#.3g}",
            f"{PUBLISHED_FLOPS[name][1]}",
            f"{config.hardware_flops_per_token(LENGTH, recompute) / 1e12:#.3g}",
        )
        for name, config, recompute in sizes
    ]
    columns = ("published", "ours", "error", "published in")
    return "\n\n".join(
        [
            table(head, rows),
            "\n".join(notes),
            table(("TFLOPs/token", "published", "ours", "recomputed, published", "ours"), flops),
            table(("predicted by the cost model", *columns), _times(predictions)),
            table(("runs with pipelines", *columns), _times(runs)),
            "\n".join(remarks),
        ]
    )


def _times(predictions: Sequence[Prediction]) -> list[tuple[str, ...]]:
    return [
        (p.quantity, f"{p.published:.2f} {p.unit}", f"{p.ours:.2f} {p.unit}", f"{p.error:+.1%}", p.source)
        for p in predictions
    ]


def describe_pods(
    spans: dict[tuple[int, float], Span], host_gb_s: float, dispatch: float, slow: float, published: float | None
) -> str:
    """SPMD or Pathways: step time by pods and links; for PaLM's own step also the answer, with its conditions.

    Args:
        spans: by number of pods and GB/s per host.
        host_gb_s: GB/s per host of the machine.
        dispatch: seconds that a controller needs to start a program on two pods.
        slow: GB/s per host below which two pods lose more than 5 % of a step.
        published: speedup of two pods over one, if this is PaLM's step.
    """
    links = sorted({link for _, link in spans})
    head = ("pods", *(f"{link:g} GB/s" for link in links))
    grids = []
    for way, name in WAYS.items():
        rows = [(f"{n}", *(_seconds(getattr(spans[n, link], way)) for link in links)) for n in PODS]
        grids.append(f"{name}: step time by bandwidth per host\n{table(head, rows)}")
    if published is None:
        return "\n\n".join(grids)
    two, eight = spans[2, host_gb_s], spans[8, host_gb_s]
    answer = ANSWER.format(
        alone=two.alone,
        pathways=two.pathways,
        times=two.speedup(two.pathways),
        published=published,
        spmd=two.spmd,
        dispatch=1e3 * dispatch,
        eight_pathways=eight.pathways,
        eight_spmd=eight.spmd,
        slow=slow,
        hidden=spans[2, LINKS[0]].spmd_overlap,
        slowest=LINKS[0],
    )
    return "\n\n".join([*grids, answer])


def write_plan(file: Path, machine: Machine, candidates: Sequence[Candidate]) -> None:
    """Writes candidates as JSON.

    Raises:
        OSError: the file could not be written.
    """
    write_json(file, {"machine": machine.title, "layouts": [_as_json(candidate) for candidate in candidates]})


def _as_json(candidate: Candidate) -> dict[str, Any]:
    time = candidate.time
    return {
        "parallel": candidate.settings.parallel.model_dump(mode="json"),
        "micro_batch": candidate.settings.train.micro_batch,
        "pipeline": asdict(candidate.pipeline),
        "memory_bytes": candidate.memory,
        "memory_bytes_by_stage": list(candidate.by_stage),
        "step_seconds": time.seconds,
        "mfu": time.mfu,
        "hfu": time.hfu,
        **asdict(time),
    }


def _mesh(work: Workload) -> str:
    """The mesh, with the stages of a pipeline before it."""
    interleaved = f" of {work.chunks} runs" if work.chunks > 1 else ""
    stages = f"{work.pipeline} stages{interleaved} x " if work.pipeline > 1 else ""
    return f"{stages}{work.layout.mesh}"


def _batch(work: Workload) -> str:
    count = work.micro_batches
    return f"{work.batch:,} sequences of {work.length:,} tokens in {count:,} micro-batch{'es' * (count > 1)}"


def _run_seconds(settings: Settings, machine: Machine) -> float:
    """Time of all steps, at all batch sizes."""
    ramp, steps = settings.train.batch_ramp(), settings.train.steps
    ends = [start for start, _ in ramp[1:]] + [steps]
    seconds = 0.0
    for (start, size), end in zip(ramp, ends, strict=True):
        train = settings.train.model_copy(update={"batch_size": size})
        work = Workload.of(settings.model_copy(update={"train": train}), machine.target)
        seconds += max(0, min(end, steps) - start) * step_time(work, machine).seconds
    return seconds


def _seconds(seconds: float) -> str:
    for scale, unit in ((1, "s"), (1e3, "ms")):
        if seconds * scale >= 1:
            return f"{seconds * scale:.2f} {unit}"
    return f"{seconds * 1e6:.0f} us"


def _flops(count: float) -> str:
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= 0.01 * scale:
            return f"{count / scale:#.3g} {unit}"
    return f"{count:,.0f}"

"""What a run costs, as text and as JSON: sizes, memory, time, and the published figures beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mindspore_palm.config import Settings
from mindspore_palm.data.atomic import write_json
from mindspore_palm.plan.machines import Machine
from mindspore_palm.plan.pods import LINKS, PODS, Span, dispatch_seconds
from mindspore_palm.plan.published import Prediction, System
from mindspore_palm.plan.search import USABLE, Candidate
from mindspore_palm.plan.step_time import StepTime
from mindspore_palm.plan.tables import listing, table
from mindspore_palm.plan.workload import Workload
from mindspore_palm.train.memory import readable

DAY = 86400.0
ANSWER = """\
One pod alone takes {alone:.2f} s a step. PaLM's two pods, with a program each, take {pathways:.2f} s: {times:.2f} times
one pod (published: {published:g}). One SPMD program over both would take {spmd:.2f} s: of two pods, each sends its
gradients to the other once, whoever directs them. So the article is right that PaLM's speed owes nothing to Pathways,
on these conditions:
- only data parallelism crosses pods, and a step is long beside a controller's dispatch of {dispatch:.0f} ms;
- pods are few: 8 that send all gradients to each other take {eight_pathways:.2f} s, in a ring {eight_spmd:.2f} s;
- hosts have more than {slow:.1f} GB/s; below, the exchange of two pods takes over 5 % of a step, unless it goes behind
  the backward pass, which hides nearly all of it ({hidden:.2f} s a step at {slowest:g} GB/s).
What Pathways gave is that two pods could be one job: JAX's own programs could not then span them."""


def describe_plan(settings: Settings, machine: Machine, found: Candidate, hidden: StepTime, work: Workload) -> str:
    """Parameters, FLOPs, memory, step time, MFU and HFU of a run on a machine.

    Args:
        settings: of the run.
        machine: that it is planned for.
        found: its time, with nothing hidden, and its memory.
        hidden: its time if all exchange over data hides behind products.
        work: the step.
    """
    model, time, length = settings.model, found.time, settings.data.seq_len
    kinds = ", ".join(f"{name} {count:,}" for name, count in model.parameters_by_kind().items())
    hardware = model.hardware_flops_per_token(length, work.recompute)
    there = machine.memory
    fits = "fits" if found.bytes <= USABLE * there else "does not fit"
    rate = work.tokens_per_step / time.seconds
    lines = {
        "machine": machine.title,
        "mesh": f"{work.layout.mesh} = {work.devices:,} devices, recompute {work.recompute}, {_passes(work)}",
        "parameters": f"{model.parameter_count():,} ({kinds})",
        "FLOPs": f"{model.flops_per_token(length) / 1e12:#.3g} T a token; {hardware / 1e12:#.3g} T with recomputation",
        "memory": f"{readable(found.bytes)} of a device's {readable(there)}: {fits}",
        "step": f"{time.seconds:.2f} s ({hidden.seconds:.2f} s if all exchange over data hides behind products)",
        "tokens": f"{rate:,.0f} a second",
        "MFU": f"{time.mfu:.1%} ({hidden.mfu:.1%})",
        "HFU": f"{time.hfu:.1%} ({hidden.hfu:.1%})",
        "whole run": f"{_run_seconds(settings, time) / DAY:,.1f} days for {settings.train.steps:,} steps",
    }
    memory = table(("memory of a device", "GB"), [(kind, f"{size / 1e9:,.3f}") for kind, size in found.memory.items()])
    share = [
        (part, f"{seconds:.3f}", f"{seconds / time.seconds:.1%}") for part, seconds in time.parts.items() if seconds > 0
    ]
    return "\n\n".join([listing(lines), memory, table(("a step's time", "s", ""), share)])


def describe_search(candidates: Sequence[Candidate], most: int = 10) -> str:
    """The best candidates as a table."""
    rows = []
    for found in candidates[:most]:
        parallel, time = found.settings.parallel, found.time
        micro = found.settings.train.micro_batch or found.settings.train.batch_ramp()[-1][1]
        rows.append(
            (
                f"{parallel.pods} x {parallel.data} x {parallel.model}",
                parallel.recompute,
                f"{micro:,}",
                f"{found.bytes / 1e9:.1f}",
                f"{time.seconds:.2f}",
                f"{time.mfu:.1%}",
                f"{time.hfu:.1%}",
            )
        )
    head = ("pods x data x model", "recompute", "micro batch", "GB a device", "s a step", "MFU", "HFU")
    more = f"\n{len(candidates):,} layouts fit; the best {len(rows)} are shown" if len(candidates) > most else ""
    return table(head, rows) + more


def describe_published(systems: Sequence[System], predictions: Sequence[Prediction]) -> str:
    """The article's table, and the cost model beside times that were published."""
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
            )
        )
    head = ("", "accelerators", "published throughput", "MFU %", "ours", "error", "HFU %", "ours")
    notes = [f"{system.name}: {system.note}" for system in systems if system.note]
    times = [
        (p.what, f"{p.published:.2f} {p.unit}", f"{p.ours:.2f} {p.unit}", f"{p.error:+.1%}", p.source)
        for p in predictions
    ]
    return "\n\n".join(
        [
            table(head, rows),
            "\n".join(notes),
            table(("predicted by the cost model", "published", "ours", "error", "published in"), times),
        ]
    )


def describe_pods(spans: dict[tuple[int, float], Span], link: float, published: float, slow: float) -> str:
    """SPMD or Pathways, as two tables and the answer, with its conditions.

    Args:
        spans: by pods and link; with 2 pods all LINKS, with ``link`` all PODS.
        link: GB/s of a host between PaLM's pods.
        published: how many times one pod PaLM's two pods were.
        slow: GB/s of a host below which two pods lose more than 5 % of a step.
    """
    ways = ("spmd", "spmd_overlap", "pathways", "pathways_overlap")

    def row(first: str, s: Span) -> tuple[str, ...]:
        return (first, *(f"{getattr(s, way):.2f} s, {s.speedup(getattr(s, way)) / s.pods:.1%}" for way in ways))

    names = ("one SPMD program", "overlapped", "a program a pod", "overlapped")
    by_link = table(("2 pods, GB/s a host", *names), [row(f"{one:g}", spans[2, one]) for one in LINKS])
    by_pods = table((f"pods, {link:g} GB/s a host", *names), [row(f"{n}", spans[n, link]) for n in PODS])
    two, eight = spans[2, link], spans[8, link]
    answer = ANSWER.format(
        alone=two.alone,
        pathways=two.pathways,
        times=two.speedup(two.pathways),
        published=published,
        spmd=two.spmd,
        dispatch=1e3 * dispatch_seconds(2),
        eight_pathways=eight.pathways,
        eight_spmd=eight.spmd,
        slow=slow,
        hidden=spans[2, LINKS[0]].spmd_overlap,
        slowest=LINKS[0],
    )
    return "\n\n".join([by_link, by_pods, answer])


def write_plan(file: Path, machine: Machine, candidates: Sequence[Candidate]) -> None:
    """Writes candidates as JSON.

    Raises:
        OSError: the file could not be written.
    """
    write_json(file, {"machine": machine.title, "layouts": [_as_json(found) for found in candidates]})


def _as_json(found: Candidate) -> dict[str, Any]:
    time = found.time
    return {
        "parallel": found.settings.parallel.model_dump(mode="json"),
        "micro_batch": found.settings.train.micro_batch,
        "memory_bytes": found.memory,
        "step_seconds": time.seconds,
        "mfu": time.mfu,
        "hfu": time.hfu,
        **asdict(time),
    }


def _passes(work: Workload) -> str:
    return f"{work.batch:,} sequences of {work.length:,} tokens in {work.passes:,} pass{'es' * (work.passes > 1)}"


def _run_seconds(settings: Settings, time: StepTime) -> float:
    """Of all steps, each as long as its batch is large beside the last one."""
    ramp, steps = settings.train.batch_ramp(), settings.train.steps
    ends = [start for start, _ in ramp[1:]] + [steps]
    return sum(
        max(0, min(end, steps) - start) * time.seconds * size / ramp[-1][1]
        for (start, size), end in zip(ramp, ends, strict=True)
    )

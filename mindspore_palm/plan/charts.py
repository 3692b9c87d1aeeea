"""Charts of a plan, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from mindspore_palm.figures import make_figure, save_figure
from mindspore_palm.palm_config import Recompute
from mindspore_palm.plan.pods import PODS, Span
from mindspore_palm.plan.schedules import BACKWARD, BOTH, FORWARD, WEIGHTS
from mindspore_palm.plan.step_time import PARTS, StepTime
from mindspore_palm.plan.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mindspore_palm.plan.search import Candidate
    from mindspore_palm.plan.spanning import Ways

COLOURS = ("#1f4e8c", "#6fa1d6", "#c8501e", "#eaa36c", "#5b8a3c", "#8a6fb0", "#888888")
PUBLISHED = "#b3261e"
WIDE = "one SPMD program"  # drawn wide, as Pathways' line may cover it
ISLANDS = 97.2  # two islands, in % of one of twice the size (arXiv 2203.12533)


def draw_step(times: dict[str, StepTime], file: Path, published: float | None = None) -> None:
    """Draws a bar for each step time, divided into its parts, and a published time beside them."""
    figure, axes = _figure(9, 1.6 + 0.6 * len(times))
    right = 1.02 * max(published or 0.0, *(time.seconds for time in times.values()))
    for row, time in enumerate(times.values()):
        left = 0.0
        for part, colour in zip(PARTS, COLOURS, strict=True):
            seconds = time.parts[part]
            if seconds < 1e-3 * time.seconds:  # too thin to see
                continue
            axes.barh(row, seconds, left=left, color=colour, label=part if row == 0 else None)
            if seconds > 0.04 * time.seconds:
                axes.text(
                    left + seconds / 2, row, f"{seconds:.2g}", ha="center", va="center", color="white", fontsize=8
                )
            left += seconds
        axes.text(right, row, f"{time.seconds:.2f} s, MFU {time.mfu:.1%}", va="center", fontsize=9)
    if published:
        axes.axvline(published, color=PUBLISHED, linestyle="--", label=f"published: {published:.2f} s")
    axes.set_yticks(range(len(times)), list(times))
    axes.invert_yaxis()
    axes.set(xlabel="seconds", title="Where a step's time goes", xlim=(0, 1.25 * right))
    axes.legend(
        frameon=False, ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.45, -0.28 if len(times) > 1 else -0.4)
    )
    _save(figure, file)


def draw_meshes(candidates: Sequence[Candidate], file: Path) -> None:
    """Draws the best MFU of every mesh that fits, by model axis, with its recompute setting."""
    best: dict[int, Candidate] = {}
    for candidate in candidates:  # best first
        best.setdefault(candidate.settings.parallel.model, candidate)
    shown = sorted(best.items())
    colours = dict(zip(get_args(Recompute), COLOURS[:3], strict=True))
    figure, axes = _figure(8, 4)
    labelled: set[str] = set()
    for x, (_, candidate) in enumerate(shown):
        recompute = candidate.settings.parallel.recompute
        label = None if recompute in labelled else f"recompute {recompute}"
        labelled.add(recompute)
        axes.bar(x, 100 * candidate.time.mfu, color=colours[recompute], label=label, width=0.65)
        text = f"{candidate.time.mfu:.1%}\n{candidate.bytes / 1e9:.0f} GB"
        axes.text(x, 100 * candidate.time.mfu, text, ha="center", va="bottom", fontsize=8)
    ticks = [f"{c.settings.parallel.data} x {model}{_stages(c)}" for model, c in shown]
    axes.set_xticks(range(len(shown)), ticks)
    axes.set(xlabel="data x model", ylabel="predicted MFU, %", title="Meshes that fit, each at its best setting")
    axes.set_ylim(0, 125 * max(c.time.mfu for c in best.values()))
    axes.legend(frameon=False)
    _save(figure, file)


def _stages(candidate: Candidate) -> str:
    stages = candidate.pipeline.stages
    return f"\n{stages} stages" if stages > 1 else ""


def draw_scaling(spans: Sequence[Span], file: Path, published: tuple[int, float] | None = None) -> None:
    """Draws weak scaling over pods at one link speed: throughput relative to one pod."""
    figure, axes = _figure(6.5, 4.5)
    pods = [s.pods for s in spans]
    axes.plot(pods, pods, color="#999999", linestyle=":", label="perfect")
    for name, seconds, colour, style in _ways(spans):
        axes.plot(pods, [s.speedup(t) for s, t in zip(spans, seconds, strict=True)], style, color=colour, label=name)
    if published:
        label = f"PaLM, published: {published[1]:g}"
        axes.plot(*published, "*", color=PUBLISHED, markersize=14, label=label)
    axes.set(xlabel="pods", ylabel="speedup over one pod", title=f"Weak scaling, {spans[0].link:g} GB/s per host")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, file)


def draw_pods(spans: dict[tuple[int, float], Span], host_gb_s: float, file: Path, published: float | None) -> None:
    """Draws SPMD beside Pathways: efficiency of 2 pods by link, and by number of pods at the machine's own link.

    ``published`` is PaLM's speedup of two pods over one; None leaves the published points out.
    """
    figure, (left, right) = make_figure(2, 12, 4.6)
    links = sorted(link for pods, link in spans if pods == 2)
    for axes, x, chosen, label in (
        (left, links, [spans[2, link] for link in links], "2 pods"),
        (right, PODS, [spans[pods, host_gb_s] for pods in PODS], f"{host_gb_s:g} GB/s per host"),
    ):
        for name, seconds, colour, style in _ways(chosen):
            efficiency = [100 * s.speedup(t) / s.pods for s, t in zip(chosen, seconds, strict=True)]
            axes.plot(x, efficiency, style, color=colour, label=name, linewidth=4 if name == WIDE else 1.5)
        if published:
            reached = 100 * published / 2
            star = f"PaLM, published: {reached:.1f} %"
            axes.plot(host_gb_s if axes is left else 2, reached, "*", color=PUBLISHED, markersize=14, label=star)
        axes.set(ylabel="% of the throughput of separate pods", title=label)
    if published:
        name = f"Pathways, two islands, 64B, published: {ISLANDS} %"
        left.axhline(ISLANDS, color="#777777", linestyle="--", linewidth=1, label=name)
    left.set(xlabel="GB/s per host between pods", xscale="log")
    right.set(xlabel="pods")
    left.legend(frameon=False, fontsize=8)
    _save(figure, file)


WAY_COLOURS = {"data": COLOURS[1], "pipeline": COLOURS[3], "both": COLOURS[4]}
WAY_NAMES = {"data": "data parallel", "pipeline": "a pipeline, a stage per pod", "both": "replicas of a pipeline"}


def draw_ways(grids: Mapping[int, Mapping[tuple[int, float], Ways]], file: Path) -> None:
    """Draws a map for each number of sequences per pod: the fastest way to train one model, by pods and links."""
    figure, panels = make_figure(len(grids), 6.2 * len(grids), 4.8)
    for axes, (batch, grid) in zip(panels, grids.items(), strict=True):
        links = sorted({link for _, link in grid})
        pods = sorted({count for count, _ in grid if count > 1})
        for (row, count), (column, link) in product(enumerate(pods), enumerate(links)):
            one = grid[count, link]
            efficiency = 100 * one.efficiency(one.seconds[one.winner])
            axes.barh(row, 0.96, left=column - 0.48, height=0.94, color=WAY_COLOURS[one.winner])
            axes.text(column, row, f"{efficiency:.0f}", ha="center", va="center", fontsize=8)
        axes.set_xticks(range(len(links)), [f"{link:g}" for link in links], fontsize=8)
        axes.set_yticks(range(len(pods)), [str(count) for count in pods])
        axes.set(xlabel="GB/s per host between pods", ylabel="pods", title=f"{batch:,} sequences per pod")
        for way, colour in WAY_COLOURS.items():
            axes.barh(0, 0, color=colour, label=WAY_NAMES[way])
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.suptitle("Fastest way to train one model, and % of the throughput of separate pods")
    _save(figure, file)


TASKS = {
    FORWARD: ("forward", COLOURS[0]),
    BOTH: ("backward and weights as one", COLOURS[2]),
    BACKWARD: ("backward", COLOURS[3]),
    WEIGHTS: ("weights", COLOURS[4]),
}
NUMBERED = 60  # as many tasks of a device as have room for the number of their micro-batch


def draw_schedules(timelines: Sequence[Timeline], file: Path) -> None:
    """Draws what each device of a pipeline computes when, one schedule below the other."""
    devices = timelines[0].schedule.devices
    figure, axes = _figure(12, 1.5 + 0.22 * len(timelines) * (devices + 1))
    right = max(timeline.seconds for timeline in timelines)
    for number, timeline in enumerate(timelines):
        top = number * (devices + 1)
        for device, span in enumerate(timeline.spans):
            for kind, (_, colour) in TASKS.items():
                boxes = [(start, end - start) for task, start, end in span if task.kind == kind]
                axes.broken_barh(boxes, (top + device - 0.45, 0.9), color=colour, edgecolor="white", linewidth=0.3)
            for task, start, end in span if len(span) <= NUMBERED else ():
                place = {"ha": "center", "va": "center", "color": "white", "fontsize": 5}
                axes.text((start + end) / 2, top + device, str(task.micro_batch + 1), **place)
        share = f"{timeline.schedule.name}: bubble {timeline.bubble / timeline.seconds:.1%}"
        axes.text(1.01 * right, top + (devices - 1) / 2, share, va="center", fontsize=8)
    for label, colour in TASKS.values():
        axes.barh(0, 0, color=colour, label=label)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set(xlabel="time", title=f"{devices} devices, one row each", xlim=(0, 1.25 * right))
    axes.legend(frameon=False, ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.45, -0.08))
    _save(figure, file)


def _ways(spans: Sequence[Span]) -> list[tuple[str, list[float], str, str]]:
    return [
        (WIDE, [s.spmd for s in spans], COLOURS[0], "o-"),
        ("one SPMD program, overlapped", [s.spmd_overlap for s in spans], COLOURS[1], "o--"),
        ("one program per pod (Pathways)", [s.pathways for s in spans], COLOURS[2], "s-"),
        ("one program per pod, overlapped", [s.pathways_overlap for s in spans], COLOURS[3], "s--"),
    ]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure, (axes,) = make_figure(1, width, height)
    return figure, axes


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, file, dpi=120)

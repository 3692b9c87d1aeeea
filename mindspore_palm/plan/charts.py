"""Charts of a plan, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mindspore_palm.data.atomic import write_atomically
from mindspore_palm.plan.pods import LINKS, PODS, Span
from mindspore_palm.plan.step_time import PARTS, StepTime

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mindspore_palm.plan.search import Candidate

COLOURS = ("#1f4e8c", "#6fa1d6", "#c8501e", "#eaa36c", "#5b8a3c", "#8a6fb0", "#888888")
PUBLISHED = "#b3261e"


def draw_step(times: dict[str, StepTime], file: Path, published: float | None = None) -> None:
    """Where the time of a step goes: a bar for each of some steps, and a published time beside them."""
    figure, axes = _figure(9, 1.6 + 0.6 * len(times))
    right = 1.02 * max(published or 0.0, *(time.seconds for time in times.values()))
    for row, time in enumerate(times.values()):
        left = 0.0
        for part, colour in zip(PARTS, COLOURS, strict=True):
            seconds = time.parts[part]
            if seconds < 1e-3 * time.seconds:  # too thin to be seen
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
    """The best MFU of every mesh that fits, by its model axis, and what is recomputed for it."""
    best: dict[int, Candidate] = {}
    for found in candidates:  # best first
        best.setdefault(found.settings.parallel.model, found)
    shown = sorted(best.items())
    colours = dict(zip(("none", "attention", "block"), COLOURS[:3], strict=True))
    figure, axes = _figure(8, 4)
    labelled: set[str] = set()
    for place, (_, found) in enumerate(shown):
        recompute = found.settings.parallel.recompute
        label = None if recompute in labelled else f"recompute {recompute}"
        labelled.add(recompute)
        axes.bar(place, 100 * found.time.mfu, color=colours[recompute], label=label, width=0.65)
        text = f"{found.time.mfu:.1%}\n{found.bytes / 1e9:.0f} GB"
        axes.text(place, 100 * found.time.mfu, text, ha="center", va="bottom", fontsize=8)
    ticks = [f"{c.settings.parallel.data} x {model}" for model, c in shown]
    axes.set_xticks(range(len(shown)), ticks)
    axes.set(xlabel="data x model", ylabel="predicted MFU, %", title="Meshes that fit, the best setting of each")
    axes.set_ylim(
        0, 1.25 * 100 * shown[0][1].time.mfu if len(shown) == 1 else 125 * max(c.time.mfu for c in best.values())
    )
    axes.legend(frameon=False)
    _save(figure, file)


def draw_scaling(spans: Sequence[Span], file: Path, published: tuple[int, float] | None = None) -> None:
    """Weak scaling over pods, one link: work a second of one pod's."""
    figure, axes = _figure(6.5, 4.5)
    pods = [s.pods for s in spans]
    axes.plot(pods, pods, color="#999999", linestyle=":", label="perfect")
    for name, seconds, colour, style in _ways(spans):
        axes.plot(pods, [s.speedup(t) for s, t in zip(spans, seconds, strict=True)], style, color=colour, label=name)
    if published:
        label = f"PaLM, published: {published[1]:g}"
        axes.plot(*published, "*", color=PUBLISHED, markersize=14, label=label)
    axes.set(xlabel="pods", ylabel="times one pod", title=f"Weak scaling, {spans[0].link:g} GB/s a host")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, file)


def draw_pods(spans: dict[tuple[int, float], Span], file: Path, published: tuple[float, float]) -> None:
    """SPMD or Pathways: efficiency over links for 2 pods, and over pods for PaLM's own link."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    link, speedup = published
    for axes, where, label in (
        (left, [(2, one) for one in LINKS], "2 pods"),
        (right, [(pods, link) for pods in PODS], f"{link:g} GB/s a host, as PaLM's"),
    ):
        chosen = [spans[place] for place in where]
        x = [s.link if axes is left else s.pods for s in chosen]
        for name, seconds, colour, style in _ways(chosen):
            efficiency = [100 * s.speedup(t) / s.pods for s, t in zip(chosen, seconds, strict=True)]
            axes.plot(
                x, efficiency, style, color=colour, label=name, linewidth=4 if name == "one SPMD program" else 1.5
            )
        axes.plot(
            link if axes is left else 2,
            100 * speedup / 2,
            "*",
            color=PUBLISHED,
            markersize=14,
            label="PaLM, published: 97.5 %",
        )
        axes.set(ylabel="% of as many separate pods", title=label)
    left.axhline(
        97.2, color="#777777", linestyle="--", linewidth=1, label="Pathways, two islands, 64B, published: 97.2 %"
    )
    left.set(xlabel="GB/s of a host between pods", xscale="log")
    right.set(xlabel="pods")
    left.legend(frameon=False, fontsize=8)
    _save(figure, file)


def _ways(spans: Sequence[Span]) -> list[tuple[str, list[float], str, str]]:
    return [
        ("one SPMD program", [s.spmd for s in spans], COLOURS[0], "o-"),  # drawn wide: Pathways' line may lie on it
        ("one SPMD program, overlapped", [s.spmd_overlap for s in spans], COLOURS[1], "o--"),
        ("a program a pod (Pathways)", [s.pathways for s in spans], COLOURS[2], "s-"),
        ("a program a pod, overlapped", [s.pathways_overlap for s in spans], COLOURS[3], "s--"),
    ]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    axes.grid(alpha=0.25, axis="x" if height < 4 else "both")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, file: Path) -> None:
    from matplotlib import pyplot

    image = io.BytesIO()
    figure.savefig(image, dpi=120, format="png")
    pyplot.close(figure)
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(file) as stream:
        stream.write(image.getvalue())

"""Pictures of a study, as PNG files: every seed is drawn, beside mean and interval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mindspore_palm.figures import make_figure, save_figure
from mindspore_palm.study.wording import all_rows

NAMES = {
    "differences": "differences.png",
    "fit": "compute.png",
    "position": "positions.png",
    "parallel": "step_time.png",
    "attention": "decoding.png",
}
"""File of each picture: by claim, or by what it shows."""
COLOURS = ("#1f4e8c", "#c8501e", "#5b8a3c", "#8a6fb0", "#b8860b", "#3a9a9a", "#888888")
DPI = 110


def draw(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws what there is to draw; returns the files.

    Raises:
        OSError: one cannot be written.
    """
    drawn = (
        (_differences, "differences"),
        (_compute, "fit"),
        (_positions, "position"),
        (_times, "parallel"),
        (_decoding, "attention"),
    )
    files = []
    for picture, name in drawn:
        if (figure := picture(found)) is not None:
            save_figure(figure, folder / NAMES[name], DPI)
            files.append(folder / NAMES[name])
    return files


def _runs(found: Mapping[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    return {(row["variant"], row["size"]): row["runs"] for row in found["losses"]}


def _differences(found: Mapping[str, Any]) -> Any:
    rows = [r for r in found["comparisons"] if r["measure"] == "loss" and r.get("value") is not None]
    if not rows:
        return None
    runs, base = _runs(found), found["base"]
    figure, (axes,) = make_figure(1, 9, 1.2 + 0.3 * len(rows))
    for y, row in enumerate(rows):
        pairs = zip(runs[row["variant"], row["size"]], runs[base, row["size"]], strict=True)
        points = [ours["loss"] - theirs["loss"] for ours, theirs in pairs]
        axes.plot(points, [y] * len(points), "o", color=COLOURS[0], alpha=0.35, markersize=5)
        axes.plot([row["low"], row["high"]], [y, y], "-", color=COLOURS[1], linewidth=2.5)
        axes.plot([row["value"]], [y], "D", color=COLOURS[1], markersize=5)
    axes.axvline(0.0, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{row['variant']}, {row['size']}" for row in rows])
    axes.invert_yaxis()
    confidence = f"{100 * found['confidence']:g} %"
    axes.set(xlabel=f"held-out loss above that of {base}, nats/token")
    axes.set_title(
        f"Right of zero: worse than {base}. Dots: seeds; bars: {confidence} intervals of the mean", fontsize=9
    )
    return figure


def _compute(found: Mapping[str, Any]) -> Any:
    line, runs = found["fit"], _runs(found)
    if not line:
        return None
    figure, (axes,) = make_figure(1, 7, 4)
    for flops, size in zip(line["flops"], line["sizes"], strict=True):
        losses = [run["loss"] for run in runs[found["base"], size]]
        axes.plot([flops] * len(losses), losses, "o", color=COLOURS[0], alpha=0.5)
        axes.annotate(size, (flops, max(losses)), textcoords="offset points", xytext=(6, 4), fontsize=8)
    x = np.geomspace(line["flops"][0], line["flops"][-1], 50)
    axes.plot(x, line["level"] - line["slope"] * np.log(x), "-", color=COLOURS[1], label="the fitted line")
    axes.set(xscale="log", xlabel="FLOPs of a run", ylabel="held-out loss, nats/token")
    axes.set_title(f"Loss of {found['base']} over compute; a dot is a seed", fontsize=10)
    axes.legend(frameon=False)
    return figure


def _positions(found: Mapping[str, Any]) -> Any:
    rows = [row for row in all_rows(found) if row["measure"] == "loss_beyond"]
    if not rows:
        return None
    size, runs = rows[-1]["size"], _runs(found)
    names = [found["base"], *dict.fromkeys(row["variant"] for row in rows)]
    figure, (axes,) = make_figure(1, 8, 4)
    for colour, name in zip(COLOURS, names, strict=False):
        ours = [run["beyond"] for run in runs[name, size] if not run["diverged"]]
        lengths = [times for times in (ours[0] if ours else {}) if ours[0][times]]
        if not lengths:
            continue
        curves = np.asarray([run[lengths[-1]] for run in ours])
        x = int(lengths[-1]) * (np.arange(curves.shape[1]) + 0.5) / curves.shape[1]
        for curve in curves:
            axes.plot(x, curve, "-", color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(x, curves.mean(axis=0), "o-", color=colour, markersize=3, label=name)
    axes.axvline(1.0, color="#333333", linestyle=":", label="the trained length")
    axes.set(xlabel="position, in trained lengths", ylabel="held-out loss, nats/token")
    axes.set_title(f"Loss by position, {size}; thin lines are seeds", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _times(found: Mapping[str, Any]) -> Any:
    return _ratios(found, "step_time", "time of a step over that of")


def _decoding(found: Mapping[str, Any]) -> Any:
    return _ratios(found, "decode_time", "time of a token over that of")


def _ratios(found: Mapping[str, Any], measure: str, what: str) -> Any:
    """Times over those of the base, turn by turn."""
    base = found["base"]
    rows = [
        (f"{name}, {row['size']}{', ' + ' x '.join(map(str, row['case'])) if row['case'] else ''}", name, row["turns"])
        for row in found["times"]["seconds"]
        if row["measure"] == measure
        for name in row["turns"]
        if name != base
    ]
    if not rows:
        return None
    figure, (axes,) = make_figure(1, 9, 1.2 + 0.3 * len(rows))
    for y, (_, name, turns) in enumerate(rows):
        ratios = [ours / theirs for ours, theirs in zip(turns[name], turns[base], strict=True)]
        axes.plot(ratios, [y] * len(ratios), "o", color=COLOURS[0], alpha=0.35, markersize=5)
        axes.plot([float(np.median(ratios))], [y], "D", color=COLOURS[1], markersize=5)
    axes.axvline(1.0, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.invert_yaxis()
    axes.set(xlabel=f"{what} {base}")
    axes.set_title("A dot is a turn; diamonds are medians", fontsize=9)
    return figure

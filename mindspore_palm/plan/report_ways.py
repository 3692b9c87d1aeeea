"""Ways to use several pods, and where a pipeline overtakes meshes without one, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

from mindspore_palm.plan.crossover import Crossing
from mindspore_palm.plan.search import Candidate
from mindspore_palm.plan.spanning import COMMON, Ways
from mindspore_palm.tables import table

Grid = Mapping[tuple[int, float], Ways]
LETTERS = {"data": "D", "pipeline": "P", "both": "B"}


def describe_ways(grids: Mapping[int, Grid], host_gb_s: float) -> str:
    """The fastest way to train one model by pods and links, all ways at the machine's link, and an answer.

    Args:
        grids: by sequences per pod, largest first; each by pods and GB/s per host.
        host_gb_s: GB/s per host of the machine.
    """
    head = "Fastest way to train one model, and % of the throughput of separate pods"
    legend = "D data parallel, P a pipeline with a stage per pod, B replicas of a pipeline; all transfers overlapped"
    parts = [f"{head}:\n{legend}"]
    for batch, grid in grids.items():
        links = sorted({link for _, link in grid})
        pods = sorted({count for count, _ in grid})
        rows = [(f"{count}", *(_cell(grid[count, link]) for link in links)) for count in pods if count > 1]
        parts.append(f"{batch:,} sequences per pod\n" + table(("pods", *(f"{link:g} GB/s" for link in links)), rows))
    batch, grid = next(iter(grids.items()))
    rows = [_row(one) for (_, link), one in sorted(grid.items()) if link == host_gb_s]
    columns = ("pods", "one program", "one per pod", "pipeline", "both", "models in common", "models in turns")
    parts.append(f"All ways at {host_gb_s:g} GB/s per host, {batch:,} sequences per pod, in %\n{table(columns, rows)}")
    return "\n\n".join([*parts, answer(grids, host_gb_s)])


def answer(grids: Mapping[int, Grid], host_gb_s: float) -> str:
    """When a controller pays, with the numbers of these pods."""
    batch, grid = next(iter(grids.items()))
    pods = max(count for count, _ in grid)
    most = grid[pods, host_gb_s]
    lines = [
        f"When does a controller such as Pathways pay? With {pods} pods, {host_gb_s:g} GB/s per host and {batch:,} "
        "sequences per pod:",
        f"- One model, data parallel: never in speed. One SPMD program reaches {_percent(most, most.spmd)} of separate "
        f"pods, a program per pod {_percent(most, most.programs)}.",
    ]
    if most.pipeline and most.both:
        lines.append(
            f"- One model in a pipeline over all pods: {_percent(most, most.pipeline.seconds)}; in replicas of a "
            f"shorter one: {_percent(most, most.both.seconds)}. {_where_pipelines_win(grids)}"
        )
    turns = f", and {_percent(most, most.turns)} each if two take turns on one pipeline" if most.turns else ""
    lines.append(
        "- Several models: 100 % with one per pod, as nothing crosses; that needs no controller. With "
        f"{100 * COMMON:g} % of their weights in common: {_percent(most, most.shared)}{turns}. Here a controller "
        "pays: pods run different programs and still add gradients, which one SPMD program cannot."
    )
    bound = (line.replace(" %", "\N{NO-BREAK SPACE}%") for line in lines)  # a percent sign starts no line
    wrapped = "\n".join(fill(line, 118, subsequent_indent="  " * line.startswith("-")) for line in bound)
    return wrapped.replace("\N{NO-BREAK SPACE}", " ")


def _where_pipelines_win(grids: Mapping[int, Grid]) -> str:
    """The fastest links at which a pipeline is the fastest way, and what a controller costs there."""
    cells = [(batch, one) for batch, grid in grids.items() for one in grid.values() if one.pods > 1]
    won = [(batch, one, one.fastest) for batch, one in cells if one.winner != "data" and one.fastest]
    if not won:
        return "Data parallel is faster everywhere on these maps, as the backward pass hides its gradients."
    batch, best, piped = max(won, key=lambda cell: cell[1].link)
    more = [one.link for _, one in cells if one.link > best.link]
    rest = f"; from {min(more):g} GB/s on, data parallel always does" if more else ""
    return (
        f"A pipeline wins up to {best.link:g} GB/s, with {batch:,} sequences per pod{rest}. Starting its "
        f"{piped.programs:,} programs takes a controller {piped.dispatch:.1f} s of a step of {piped.seconds:.1f} s."
    )


def _percent(one: Ways, seconds: float) -> str:
    return f"{100 * one.efficiency(seconds):.1f} %"


def describe_crossings(crossings: Sequence[Crossing]) -> str:
    """The best mesh without and with a pipeline in each case."""
    rows = []
    for one in crossings:
        gain = "" if one.gain is None else f"{one.gain:+.1%}"
        rows.append((one.case, *_candidate(one.plain), *_candidate(one.piped), gain))
    head = ("", "pods x data x model", "recompute", "step", "with stages", "recompute", "step", "saved")
    return table(head, rows)


def _candidate(candidate: Candidate | None) -> tuple[str, str, str]:
    if candidate is None:
        return "none fits", "", ""
    parallel, pipeline = candidate.settings.parallel, candidate.pipeline
    stages = f" x {pipeline.stages} of {pipeline.interleave}" if pipeline.stages > 1 else ""
    mesh = f"{parallel.pods} x {parallel.data} x {parallel.model}{stages}"
    return mesh, parallel.recompute, f"{candidate.time.seconds:.2f} s"


def _cell(one: Ways) -> str:
    return f"{LETTERS[one.winner]} {100 * one.efficiency(one.seconds[one.winner]):.0f}"


def _row(one: Ways) -> tuple[str, ...]:
    seconds = (
        one.spmd,
        one.programs,
        one.pipeline.seconds if one.pipeline else None,
        one.both.seconds if one.both else None,
        one.shared,
        one.turns,
    )
    return (f"{one.pods}", *("" if s is None else f"{100 * one.efficiency(s):.1f}" for s in seconds))

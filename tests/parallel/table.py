"""Prints how far training on every mesh is from one process, from JAX and from JAX on the same mesh, as Markdown.

``python tests/parallel/table.py``, or with ``--meshes 1,2,2 2,2,2`` for some, ``--all`` for all cases of the suite,
``--strategy NAME`` for the cases of one table of axes, ``--pipelines`` for the cases with stages, ``--reductions`` for
those that reduce gradients once a step.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from parallel.cases import Case
from parallel.compare import differences
from parallel.runs import JAX, MESH, ONE, TWINS, Runs, twins_of
from parallel.suite import FURTHER, MESHES, PIPELINES, QUICK, REDUCTIONS, SLOW

from mindspore_palm.parallel.axes import TABLES

COLUMNS = [(twin, "loss") for twin in TWINS] + [(None, kind) for kind in ("gradient norm", "gradients", "weights")]
HEAD = (
    "pods x data x model",
    "cases",
    f"loss: {ONE}",
    JAX,
    MESH,
    "gradient norm",
    "first gradients",
    "weights after 10 steps",
)


def row(mesh: Sequence[int], cases: Iterable[Case], runs: Runs) -> list[str]:
    """The largest differences of a mesh's cases; where no twin is named, over all three."""
    largest: dict[tuple[str | None, str], float] = {}
    cases = list(cases)
    for case in cases:
        ours, disagree = runs.of(case)
        assert not disagree, (case, disagree)
        for twin in twins_of(case):
            for kind, value in differences(ours, runs.twin(case, twin)).items():
                for key in ((twin, kind), (None, kind)):
                    largest[key] = max(largest.get(key, 0.0), value)
    return [" x ".join(map(str, mesh)), str(len(cases)), *(f"{largest.get(key, 0.0):.0e}" for key in COLUMNS)]


PIPELINE_HEAD = (
    "stages x pods x data x model",
    "schedules",
    "cases",
    f"loss: {ONE}",
    JAX,
    "gradient norm",
    "first gradients",
    "weights after 10 steps",
)


REDUCTION_HEAD = ("reduced", "pods x data x model", *PIPELINE_HEAD[2:])


def pipeline_rows(runs: Runs) -> list[list[str]]:
    """The largest differences of each mesh with stages, over both twins."""
    rows = []
    for stages, mesh in dict.fromkeys((case.stages, case.mesh) for case in PIPELINES):
        cases = [case for case in PIPELINES if (case.stages, case.mesh) == (stages, mesh)]
        schedules = ", ".join(dict.fromkeys(_schedule(case) for case in cases))
        pods_data_model, count, one, jax, _, *rest = row(mesh, cases, runs)
        rows.append([f"{stages} x {pods_data_model}", schedules, count, one, jax, *rest])
    return rows


def reduction_rows(runs: Runs) -> list[list[str]]:
    """The largest differences of each way to reduce gradients and each mesh, over all twins that a case has."""
    rows = []
    for kind in dict.fromkeys((case.reduce, case.mesh) for case in REDUCTIONS):
        cases = [case for case in REDUCTIONS if (case.reduce, case.mesh) == kind]
        mesh, count, one, jax, _, *rest = row(kind[1], cases, runs)
        rows.append([kind[0], mesh, count, one, jax, *rest])
    return rows


def _schedule(case: Case) -> str:
    return f"interleaved {case.schedule}" if case.schedule == "1f1b" and case.interleave > 1 else case.schedule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meshes", nargs="*", help="pods,data,model; default all seven")
    parser.add_argument("--all", action="store_true", help="every case of the suite, many minutes")
    parser.add_argument("--strategy", choices=list(TABLES), help="all cases of this table of axes, and no others")
    parser.add_argument("--pipelines", action="store_true", help="the cases with stages, a quarter of an hour")
    parser.add_argument("--reductions", action="store_true", help="the cases that reduce gradients once a step")
    options = parser.parse_args()
    if options.reductions:
        with tempfile.TemporaryDirectory() as folder:
            print_table(REDUCTION_HEAD, reduction_rows(Runs(Path(folder), REDUCTIONS)))
        return
    if options.pipelines:
        with tempfile.TemporaryDirectory() as folder:
            print_table(PIPELINE_HEAD, pipeline_rows(Runs(Path(folder), PIPELINES)))
        return
    meshes = [tuple(map(int, mesh.split(","))) for mesh in options.meshes] if options.meshes else list(MESHES)
    if set(meshes) - set(MESHES):
        parser.error(f"the meshes of the suite are {' '.join(','.join(map(str, mesh)) for mesh in MESHES)}")
    cases = [*QUICK, *SLOW] if options.all or options.strategy else [*QUICK, *(c for c in SLOW if c in brief())]
    cases = [c for c in cases if c.mesh in meshes and options.strategy in (None, c.table)]
    meshes = [mesh for mesh in meshes if mesh in {c.mesh for c in cases}]
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), cases)
        print_table(HEAD, [row(mesh, [case for case in cases if case.mesh == mesh], runs) for mesh in meshes])


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table as Markdown."""
    for line in (head, ["---", *["---:"] * (len(head) - 1)], *rows):
        print("| " + " | ".join(line) + " |")


def brief() -> list[Case]:
    """Cases beside the quick ones: weights sharded inside a pod, with each kind of recomputation."""
    return [case for case in SLOW if case not in FURTHER and case.shard_weights == "pod" and case.gradients]


if __name__ == "__main__":
    main()

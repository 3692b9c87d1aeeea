"""Prints how far training on every mesh is from one process, from JAX and from JAX on the same mesh, as Markdown.

``python tests/parallel/table.py``, or with ``--meshes 1,2,2 2,2,2`` for some, ``--all`` for all cases of the suite,
``--strategy NAME`` for the cases of one table of axes.
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
from parallel.runs import JAX, MESH, ONE, TWINS, Runs
from parallel.suite import FURTHER, MESHES, QUICK, SLOW

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
        for twin in TWINS:
            for kind, value in differences(ours, runs.twin(case, twin)).items():
                for key in ((twin, kind), (None, kind)):
                    largest[key] = max(largest.get(key, 0.0), value)
    return [" x ".join(map(str, mesh)), str(len(cases)), *(f"{largest[key]:.0e}" for key in COLUMNS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meshes", nargs="*", help="pods,data,model; default all seven")
    parser.add_argument("--all", action="store_true", help="every case of the suite, many minutes")
    parser.add_argument("--strategy", choices=list(TABLES), help="all cases of this table of axes, and no others")
    options = parser.parse_args()
    meshes = [tuple(map(int, mesh.split(","))) for mesh in options.meshes] if options.meshes else list(MESHES)
    if set(meshes) - set(MESHES):
        parser.error(f"the meshes of the suite are {' '.join(','.join(map(str, mesh)) for mesh in MESHES)}")
    cases = [*QUICK, *SLOW] if options.all or options.strategy else [*QUICK, *(c for c in SLOW if c in brief())]
    cases = [c for c in cases if c.mesh in meshes and options.strategy in (None, c.table)]
    meshes = [mesh for mesh in meshes if mesh in {c.mesh for c in cases}]
    lines = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)]]
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), cases)
        lines += [row(mesh, [case for case in cases if case.mesh == mesh], runs) for mesh in meshes]
    for line in lines:
        print("| " + " | ".join(line) + " |")


def brief() -> list[Case]:
    """Cases beside the quick ones: weights sharded inside a pod, with each kind of recomputation."""
    return [case for case in SLOW if case not in FURTHER and case.shard_weights == "pod" and case.gradients]


if __name__ == "__main__":
    main()

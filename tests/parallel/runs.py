"""Runs cases and their twins, each once; cases with the same number of devices share their processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from parallel import jax_twin, msrun
from parallel.cases import Case
from parallel.compare import Seen, gather

ONE, JAX, MESH = "one process", "JAX", "JAX on the mesh"
TWINS = (ONE, JAX, MESH)


def baseline(case: Case) -> Case:
    """The case on one device, in one micro-batch, without recomputation."""
    return Case((1, 1, 1), "off", "none", case.optimizer, 1, gradients=True, length=case.length, network=case.network)


def twins_of(case: Case) -> tuple[str, ...]:
    """The twins of a case. JAX shards PaLM's own weights alone: the reference has no layout for other networks."""
    return TWINS if case.network == "palm" and case.stages == 1 else (ONE, JAX)


def _job(case: Case, mesh: tuple[int, int, int] | None) -> jax_twin.Job:
    return case.optimizer, case.length, case.network, mesh


class Runs:
    """Results of workers and of JAX for some cases; processes start when the first of their results is needed.

    Args:
        folder: an empty folder for their files.
        cases: all cases that will be needed.
    """

    def __init__(self, folder: Path, cases: Iterable[Case]) -> None:
        self.folder, cases = folder.resolve(), list(cases)
        self.cases = list(dict.fromkeys([*cases, *(baseline(case) for case in cases)]))
        self._folders: dict[object, Path | Exception] = {}

    def of(self, case: Case) -> tuple[Seen, list[str]]:
        """The workers' results of a case, and the names of what they disagree about."""
        batch = [other for other in self.cases if other.devices == case.devices]
        folder = self._once(case.devices, lambda folder: msrun.train_cases(batch, folder))
        return gather(folder / case.name, case.devices)

    def twin(self, case: Case, kind: str) -> Seen:
        """The results of a case's twin: the same network in one process, in JAX, or in JAX on the same mesh."""
        if kind == ONE:
            return self.of(baseline(case))[0]
        name = jax_twin.job_name(*_job(case, case.mesh if kind == MESH else None))
        return dict(np.load(self._once(JAX, self._run_jax) / f"{name}.npz"))

    def _run_jax(self, folder: Path) -> None:
        for case in {case.network: case for case in self.cases}.values():
            seen = self.of(baseline(case))[0]
            initial = {name.removeprefix("initial/"): x for name, x in seen.items() if name.startswith("initial/")}
            np.savez(folder / f"{case.network}.npz", **initial)
        jobs = [
            _job(case, mesh)
            for case in self.cases
            for mesh in (None, case.mesh)
            if mesh is None or MESH in twins_of(case)
        ]
        jobs = list(dict.fromkeys(jobs))
        (folder / "jobs.json").write_text(json.dumps(jobs))
        msrun.run_python(jax_twin.__file__, folder, len(jobs), jax_twin.ENVIRONMENT)

    def _once(self, key: object, start: Callable[[Path], None]) -> Path:
        """The folder that ``start`` filled; a failure is repeated without running again."""
        if key not in self._folders:
            folder = self.folder / str(key)
            folder.mkdir()
            try:
                start(folder)
                self._folders[key] = folder
            except AssertionError as error:
                self._folders[key] = error
        if isinstance(self._folders[key], Exception):
            raise self._folders[key]
        return self._folders[key]

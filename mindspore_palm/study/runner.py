"""Runs a study: what is not finished yet, in the order of its schedule, with progress and the time that is left."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from mindspore_palm.console import say
from mindspore_palm.data import Prepared
from mindspore_palm.study.file import Study
from mindspore_palm.study.jobs import Jobs, train
from mindspore_palm.study.runs import Task, comparing, measuring, tuning
from mindspore_palm.study.store import Store
from mindspore_palm.study.trainer import Trainer
from mindspore_palm.study.turns import ledger, measure

COMPILED = 16  # networks that stay compiled


@dataclasses.dataclass(frozen=True)
class Finished:
    """A task with its result."""

    task: Task
    result: Any


class Runner:
    """Carries out tasks, and keeps their results.

    Args:
        study: the study.
        store: of its results.
        prepared: its text.
        jobs: processes that train; without them, this one does.
    """

    def __init__(self, study: Study, store: Store, prepared: Prepared, jobs: Jobs | None = None) -> None:
        self.study, self.store, self.prepared, self.jobs = study, store, prepared, jobs
        self._trainers: OrderedDict[str, Trainer] = OrderedDict()

    def run(self) -> tuple[list[Finished], list[Finished], list[Finished]]:
        """Runs all that is missing; returns the results of tuning, comparison and measurements."""
        tuned = self._all(list(tuning(self.study)), "tuning")
        chosen = best_rates(tuned)
        compared = self._all(list(comparing(self.study, chosen)), "comparison")
        self._trainers.clear()
        return tuned, compared, self._all(list(measuring(self.study)), "measurement")

    def _all(self, tasks: Sequence[Task], stage: str) -> list[Finished]:
        missing = [task for task in tasks if self.store.read(task) is None]
        if done := len(tasks) - len(missing):
            say(f"{stage}: {done} of {len(tasks)} are finished already")
        start, work, done_work = time.monotonic(), sum(map(work_of, missing)), 0.0
        for number, (task, result, seconds) in enumerate(self._results(missing), len(tasks) - len(missing) + 1):
            self.store.write(task, result, seconds)
            done_work += work_of(task)
            left = (time.monotonic() - start) * (work / done_work - 1)
            position = f"{stage} {number} of {len(tasks)}"
            say(f"{position}, {_outcome(task, result)}, {seconds:.1f} s; {_minutes(left)} left of this stage")
        return [Finished(task, self.store.read(task)) for task in tasks]

    def _results(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any, float]]:
        """Tasks as they are finished, with result and seconds. Nothing is measured while jobs train."""
        trained = [task for task in tasks if task.kind == "train"]
        if self.jobs and trained:
            with self.jobs as jobs:
                yield from jobs.results(trained)
            tasks = [task for task in tasks if task.kind != "train"]
        for task in tasks:
            start = time.monotonic()
            result = self._one(task)
            yield task, result, time.monotonic() - start

    def _one(self, task: Task) -> Any:
        if task.kind == "ledger":
            return ledger(task)
        if task.kind == "turns":
            return measure(task, self.prepared)
        return train(self._trainer(task), task)

    def _trainer(self, task: Task) -> Trainer:
        """The compiled network of a run."""
        name = task.network
        if name not in self._trainers:
            while len(self._trainers) >= COMPILED:
                self._trainers.popitem(last=False)
            self._trainers[name] = Trainer(task.settings[0], self.prepared)
        self._trainers.move_to_end(name)
        return self._trainers[name]


def best_rates(tuned: Sequence[Finished]) -> dict[tuple[str, str], float]:
    """The learning rate of each (variant, size): of the lowest mean held-out loss, the smaller one of equals.

    A rate at which a seed diverged is chosen only if all did.
    """
    losses: dict[tuple[str, str], dict[float, list[float]]] = {}
    for one in tuned:
        value = math.inf if one.result["diverged"] else one.result["loss"]
        losses.setdefault((one.task.variant, one.task.size), {}).setdefault(one.task.rate, []).append(value)
    return {name: min(sorted(rates), key=lambda rate: sum(rates[rate])) for name, rates in losses.items()}


def work_of(task: Task) -> float:
    """A measure of how long a task takes, in FLOPs of training."""
    if task.kind == "train":
        settings = task.settings[0]
        tokens = settings.train.steps * settings.train.batch_ramp()[-1][1] * settings.data.seq_len
        return tokens * settings.model.flops_per_token(settings.data.seq_len) + 2e11  # small ops, and compiling
    return sum(1e11 + 1e3 * settings.model.parameter_count() for settings in task.settings)


def _outcome(task: Task, result: Any) -> str:
    if task.kind == "train":
        loss = "diverged" if result["diverged"] else f"loss {result['loss']:.4f}"
        return f"{task.describe()}: {loss}"
    return task.describe()


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

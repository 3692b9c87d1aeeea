"""Trackers beside TensorBoard: wandb and trackio get every row of metrics.csv, each step once.

Both only append. So ``trackers.json`` in the run's folder keeps, for each tracker, the id of its run and the last step
that it has. A resumed run continues that run and sends no step again: on the same machine, the steps after a checkpoint
are the same bits. After a rewind they are others, so a new run of the tracker starts with the steps that remain.
"""

from __future__ import annotations

import importlib.util
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mindspore_palm.config import Settings
from mindspore_palm.console import say
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import METRICS, TRACKERS
from mindspore_palm.files import write_json
from mindspore_palm.train.log.metrics import MetricsRow, last_step, scalars_of
from mindspore_palm.train.log.services import SERVICES, Service

RUN_ID = re.compile(r"[0-9a-f]{8}")


@dataclass
class TrackerRun:
    """The run of a tracker that a training run continues."""

    id: str
    """Of the run, which starts with eight hexadecimal digits."""
    sent: int = 0
    """The last step that it has; while ``open``, it may have more: those in metrics.csv."""
    open: bool = False
    """Whether a process sends rows to it, or was killed while it did."""
    rewinds: int = 0
    """How often the run had gone back when this run of the tracker was last continued."""


def check_trackers(settings: Settings) -> None:
    """Checks that the packages of the trackers are installed.

    Raises:
        UserError: one is missing; says how to install it.
    """
    for name in settings.train.trackers:
        if name in SERVICES and importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.trackers = {settings.train.trackers}: {name} is not installed; pip install "
                f"'{name}=={SERVICES[name].version}', or leave {name} out"
            )


class Tracker:
    """One tracker of a run. Its first failure is logged, and ends it for this process: training continues.

    Args:
        name: of the tracker.
        run: of the tracker, to continue.
        save: writes trackers.json.
    """

    def __init__(self, name: str, run: TrackerRun, save: Callable[[], None]) -> None:
        self._name, self._run, self._save = name, run, save
        self._service: Service | None = None

    def start(self, settings: Settings, folder: Path, title: str) -> None:
        """Connects to the tracker."""
        try:
            service = SERVICES[self._name].open(folder, title, self._run.id, settings.model_dump(mode="json"))
        except Exception as error:  # any error: a tracker does not end the run
            self._give_up(error)
            return
        self._service, self._run.open = service, True
        say(f"{self._name}: {service.where}")

    def follow(self, rows: Sequence[MetricsRow]) -> None:
        """Sends the rows that the tracker does not have."""
        first = len(rows)
        while first and rows[first - 1].step > self._run.sent:
            first -= 1
        for row in rows[first:]:
            if not self.add(row.step, scalars_of(row)):
                return
            self._run.sent = row.step

    def add(self, step: int, values: Mapping[str, float]) -> bool:
        """Sends values of a step; whether that succeeded."""
        if self._service is None:
            return False
        try:
            self._service.add(step, values)
        except Exception as error:  # any error: a tracker does not end the run
            self._give_up(error)
            return False
        return True

    def close(self) -> None:
        """Sends what is pending, and notes how far the tracker is."""
        service, self._service = self._service, None
        if service is None:
            return
        try:
            service.close()
        except Exception as error:  # any error: a tracker does not end the run
            self._give_up(error)
            return
        self._run.open = False
        self._save()

    def _give_up(self, error: Exception) -> None:
        self._service, self._run.open = None, False
        self._save()
        reason = (str(error) or repr(error)).strip().splitlines()[0]
        say(
            f"{self._name} fails: {reason}; training continues without it, {METRICS} has every step, and the run sends "
            f"{self._name} what it lacks when it resumes"
        )


class Trackers:
    """The trackers of a run, and trackers.json.

    Args:
        settings: of the run; name the trackers.
        folder: of the run. Its metrics.csv still has the rows after ``until``.
        until: the step that the run resumes from.
        rewinds: how often the run has gone back so far.
    """

    def __init__(self, settings: Settings, folder: Path, until: int, rewinds: int) -> None:
        self._path, self._runs, self.all = folder / TRACKERS, read_runs(folder / TRACKERS), list[Tracker]()
        for run in self._runs.values():
            if run.open:  # the process was killed: it sent each row right after it had written it to metrics.csv
                run.sent, run.open = max(run.sent, last_step(folder / METRICS)), False
        names = [name for name in settings.train.trackers if name in SERVICES]
        for name in names:
            before = self._runs.get(name)
            if before is None or (before.sent > until and before.rewinds != rewinds):
                self._runs[name] = TrackerRun(secrets.token_hex(4))
                if before:
                    say(
                        f"{name}: the steps after {until:,} are taken back, so a new run {self._runs[name].id} starts "
                        f"with those up to there; {before.id} keeps the old ones"
                    )
            self._runs[name].rewinds = rewinds
        for name in names:
            tracker, title = Tracker(name, self._runs[name], self.save), folder.resolve().name
            tracker.start(settings, folder, f"{title}, rewind {rewinds}" if rewinds else title)
            self.all.append(tracker)
        if self._runs:
            self.save()

    def save(self) -> None:
        """Writes trackers.json; a disk that is full does not end the run."""
        try:
            write_json(self._path, {name: asdict(run) for name, run in self._runs.items()})
        except OSError as error:
            say(f"{self._path} cannot be written: {error.strerror}; a resumed run may send some steps again")


def read_runs(file: Path) -> dict[str, TrackerRun]:
    """The runs in trackers.json by tracker; those that are not as this program writes them are left out."""
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    runs = {}
    for name, value in values.items() if isinstance(values, dict) else ():
        try:
            run = TrackerRun(**value)
        except TypeError:
            continue
        kinds = isinstance(run.id, str), type(run.sent) is int, type(run.open) is bool, type(run.rewinds) is int
        if name in SERVICES and all(kinds) and RUN_ID.fullmatch(run.id) and run.sent >= 0:
            runs[name] = run
    return runs

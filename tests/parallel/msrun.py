"""Runs processes for the tests in bounded time, and leaves none of them behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from parallel.cases import Case

from mindspore_palm.native import with_interpreter

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
START, EACH = (
    120.0,
    60.0,
)  # seconds for the start and each case: about eight times those of an idle machine
TAIL = 3000  # characters of a log that a failure prints


def train_cases(cases: Sequence[Case], folder: Path) -> None:
    """Has workers train cases with the same number of devices; results go to ``folder``.

    Raises:
        AssertionError: workers have failed; with the ends of their logs.
    """
    (devices,) = {case.devices for case in cases}
    (folder / "cases.json").write_text(json.dumps([dataclasses.asdict(case) for case in cases]))
    if devices == 1:
        run_python(HERE / "worker.py", folder, len(cases))
        return
    run_workers("worker.py", devices, folder, len(cases))


def run_workers(script: str, devices: int, folder: Path, jobs: int) -> None:
    """Has workers run ``script FOLDER``, a script of this folder with ``jobs`` jobs; as ``run``.

    A worker that has done its work writes the file done_RANK. It may crash while it exits, which is no failure (MS-54).
    """
    from mindspore_palm.parallel.host import build

    build.extension()  # before the clock of the workers starts
    try:
        run(msrun_command(devices, folder / "log", HERE / script, folder), folder, START + EACH * jobs)
    except AssertionError:
        if not all((folder / f"done_{rank}").exists() for rank in range(devices)):
            raise


def msrun_command(workers: int, logs: Path, *command: Path | str) -> list[str]:
    """The command with which this interpreter's msrun has workers run a script."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    counts = f"--worker_num={workers} --local_worker_num={workers} --join=True --master_port={port}".split()
    msrun = [sys.executable, "-c", "from mindspore.parallel.cluster.run import main; main()"]
    return [*msrun, *counts, f"--log_dir={logs}", *map(str, command)]


def environment(**more: str) -> dict[str, str]:
    """Environment of the tests' processes, whether this interpreter's environment is activated or not."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return {**os.environ, "PYTHONPATH": paths, "PATH": with_interpreter(os.environ.get("PATH")), **more}


def run_python(script: Path | str, folder: Path, jobs: int, more: Mapping[str, str] | None = None) -> None:
    """Runs ``script FOLDER``, with ``jobs`` jobs; as ``run``."""
    run([sys.executable, str(script), str(folder)], folder, START + EACH * jobs, more)


def run(command: Sequence[str], folder: Path, limit: float, more: Mapping[str, str] | None = None) -> None:
    """Runs a command in ``folder`` until it ends, and then kills all processes that it has started.

    Raises:
        AssertionError: it has failed, or not ended within ``limit`` seconds; with the ends of all logs.
    """
    with open(folder / "main.log", "w") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(**(more or {})),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        code = f"none after {limit:.0f} s"
    finally:
        end_all(process, folder)
    assert code == 0, f"exit code {code} of {' '.join(command)}\n{ends_of_logs(folder)}"


def end_all(process: subprocess.Popen, folder: Path) -> None:
    """Kills a process and all that it has started, also workers, which lead their own process groups."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    for group in [process.pid, *(int(path.name.split("_")[1]) for path in folder.glob("group_*"))]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    process.wait()


def ends_of_logs(folder: Path) -> str:
    """The ends of the logs; failed workers first."""
    logs = sorted((folder / "log").glob("worker_*.log"), key=lambda path: "Traceback" not in path.read_text())
    return "\n".join(f"--- {path.name}\n{path.read_text()[-TAIL:]}" for path in [*logs[:2], folder / "main.log"])

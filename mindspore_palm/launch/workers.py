"""Starts one worker per device of the mesh from one command: on CPU, on this machine, with msrun."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from mindspore_palm.errors import Interrupted, UserError
from mindspore_palm.launch import stop
from mindspore_palm.launch.process import ProcessDied, stopped_message
from mindspore_palm.launch.supervisor import KILL_TIMEOUT, LAUNCHER
from mindspore_palm.native import with_interpreter
from mindspore_palm.parallel.context import LOST

NOISE = re.compile(r"\[(INFO|WARNING|ERROR|CRITICAL)\] ")  # start of a line that MindSpore itself logs
FAILED = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")  # from msrun
MSRUN = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from mindspore_palm import console
from mindspore_palm.launch import stop
console.protect()  # a full disk under its log must not end it
stop.block()  # MS-48: a scheduler may signal all processes of a job; workers save first
from mindspore_palm.launch.process import exit_with_launcher
exit_with_launcher()
from mindspore.parallel.cluster.run import main
main()
"""
POLL_SECONDS = 0.1  # between two checks of the workers' logs
GRACE = 3.0  # MS-46: seconds for the others once one has failed; msrun's scheduler would take half a minute
ATTEMPT = "attempt_"
KEPT_ATTEMPTS = 10  # attempts whose logs are kept


def next_attempt(logs: Path) -> Path:
    """The log folder of the next attempt; deletes old ones, except for the last few.

    Args:
        logs: ``workers/`` of the run.
    """
    attempts = {int(path.name.removeprefix(ATTEMPT)): path for path in logs.glob(f"{ATTEMPT}*") if is_attempt(path)}
    for number in sorted(attempts)[: max(0, len(attempts) - KEPT_ATTEMPTS + 1)]:
        shutil.rmtree(attempts[number], ignore_errors=True)
    return logs / f"{ATTEMPT}{max(attempts, default=0) + 1}"


def is_attempt(path: Path) -> bool:
    """Whether a path is the log folder of an attempt, and not a user's own."""
    return path.is_dir() and not path.is_symlink() and path.name.removeprefix(ATTEMPT).isdecimal()


class Workers:
    """Worker processes on this machine, which end together.

    Args:
        count: number of workers.
        command: script and arguments.
        logs: new folder for the log of each worker.
        flags: in which workers record unsaved work; None creates them.
    """

    def __init__(self, count: int, command: Sequence[str], logs: Path, flags: stop.SharedFlags | None = None) -> None:
        logs.mkdir(parents=True)
        self.logs, self._flags, self._shown, self._rest = logs, flags or stop.SharedFlags(), 0, ""
        options = {
            "worker_num": count,
            "local_worker_num": count,
            "master_port": _free_port(),
            "log_dir": logs,
            "join": True,
            "tail_worker_log": count,  # MS-47: no worker has this number, so msrun repeats no log
        }
        msrun = [sys.executable, "-c", MSRUN]
        path = with_interpreter(os.environ.get("PATH"))  # MS-44: msrun runs scripts with the first python of PATH
        width = str(shutil.get_terminal_size().columns)
        environment = {**os.environ, "PATH": path, "GLOG_v": "3", "COLUMNS": width, LAUNCHER: str(os.getpid())}
        environment[stop.FLAGS_ADDRESS] = self._flags.address
        with (logs / "msrun.log").open("wb") as log, stop.blocked():
            self.msrun = subprocess.Popen(  # noqa: S603 - the user's own command
                [*msrun, *(f"--{name}={value}" for name, value in options.items()), *command],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this process alone, which signals the workers
            )
        self._processes: set[psutil.Process] = {psutil.Process(self.msrun.pid)}
        self._ranks: dict[int, str] = {}  # of workers, by process id
        self._signalled: set[int] = set()  # process ids of workers that were asked to stop

    def join(self) -> None:
        """Waits for all workers, and prints the log of the first one.

        Raises:
            UserError: a worker failed; has its error message, if there is one.
            ProcessDied: a worker failed, and a restart may succeed.
            Interrupted: the workers were asked to stop, and did.
        """
        try:
            with stop.deferred():
                deadline = None  # once a worker has failed: when the others are killed
                while self.msrun.poll() is None and (deadline is None or time.monotonic() < deadline):
                    self._show_log()
                    if stop.requested() and (stop.forced() or not self._flags.unsaved):
                        break
                    if stop.requested():
                        self._forward_stop()
                    if deadline is None and FAILED.search(self._msrun_log()):
                        deadline = time.monotonic() + GRACE
                    time.sleep(POLL_SECONDS)
                self._show_log()
        finally:
            self._kill_all()
        if stopped := self._first_line(r"^stopped .*$"):  # also if only a worker got the signal
            raise Interrupted(stopped)
        # a worker got the signal, and its log is on a full disk
        if self.msrun.returncode == 0 and self._flags.unfinished:
            raise Interrupted(stopped_message())
        if self.msrun.returncode == 0 or self._flags.done:  # MS-54: MindSpore may crash while a worker exits
            return
        problem = self._problem()
        if stop.requested() and isinstance(problem, ProcessDied):
            raise Interrupted(stopped_message())
        raise problem

    def _forward_stop(self) -> None:
        """Asks every worker to stop, once each, including those that start later."""
        for process in self._processes:
            if process.pid in self._ranks and process.pid not in self._signalled:
                self._signalled.add(process.pid)
                with suppress(psutil.Error):  # it has just ended
                    process.send_signal(signal.SIGTERM)

    def _show_log(self) -> None:
        """Prints what the first worker has logged since the last call."""
        self._find_processes()
        try:
            with (self.logs / "worker_0.log").open("rb") as file:
                file.seek(self._shown)
                new = file.read()
        except OSError:  # not created yet, or deleted
            return
        self._shown += len(new)
        *lines, self._rest = re.split(r"(?<=[\n\r])", self._rest + new.decode(errors="replace"))
        for line in lines:
            if not NOISE.match(line) and not line.startswith(("error: ", "stopped ")):  # these are reported at the end
                sys.stdout.write(line)
        sys.stdout.flush()

    def _find_processes(self) -> None:
        with suppress(psutil.Error):
            self._processes.update(psutil.Process(self.msrun.pid).children(recursive=True))
        for process in self._processes:
            if process.pid not in self._ranks:
                with suppress(psutil.Error):
                    environment = process.environ()
                    if environment.get("MS_ROLE") == "MS_WORKER":
                        self._ranks[process.pid] = environment["RANK_ID"]

    def _kill_all(self) -> None:
        for process in self._processes:
            with suppress(psutil.Error):
                process.kill()  # checked by id and start time: never another process that got the same id
        psutil.wait_procs(self._processes, timeout=KILL_TIMEOUT)

    def _first_line(self, pattern: str) -> str:
        """The first matching line in the logs of the workers, in order of their ranks; empty if there is none."""
        for log in sorted(self.logs.glob("worker_*.log"), key=lambda file: int(file.stem.split("_")[1])):
            if match := re.search(pattern, _content(log).replace("\r", "\n"), re.MULTILINE):
                return match.group()
        return ""

    def _problem(self) -> UserError:
        failed = FAILED.search(self._msrun_log())
        message = self._first_line(r"^error: .*$").removeprefix("error: ")
        if failed and int(failed.group(2)) < 0:
            name = signal.Signals(-int(failed.group(2))).name
            worker = f"worker {self._ranks.get(int(failed.group(1)), '?')} (process {failed.group(1)})"
            return ProcessDied(f"{worker} was ended by {name}, and the others with it; see {self.logs}")
        if message:
            return (ProcessDied if LOST.search(message) else UserError)(message)
        error = self._first_line(r"^\w*(Error|Exception): .*$")
        return ProcessDied(error or f"a worker ended without an error message; see {self.logs}")

    def _msrun_log(self) -> str:
        return _content(self.logs / "msrun.log")


def _content(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace")
    except OSError:  # a user has deleted it
        return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

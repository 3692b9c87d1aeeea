"""From one command to as many workers as the mesh has devices: on CPU, through msrun, on this machine."""

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
from mindspore_palm.launch.process import Died, stopped_early
from mindspore_palm.launch.supervisor import LAUNCHER
from mindspore_palm.parallel.context import LOST

NOISE = re.compile(r"\[(INFO|WARNING|ERROR|CRITICAL)\] ")  # how a line of MindSpore's own begins
FAILED = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")  # msrun's words
MSRUN = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from mindspore_palm import console
from mindspore_palm.launch import stop
console.protect()  # a full disk, where its log is, must not end it
stop.block()  # MS-48: who ends a job may tell all its processes; workers save first
from mindspore_palm.launch.process import end_with_launcher
end_with_launcher()
from mindspore.parallel.cluster.run import main
main()
"""
LOOK = 0.1  # seconds between two looks at what the workers say
GRACE = 3.0  # MS-46: seconds that the others have when one has failed; msrun's scheduler would take half a minute
PATIENCE = 60.0  # seconds for processes that were killed to be gone
ATTEMPT = "attempt_"
KEPT = 10  # attempts whose logs are kept


def next_attempt(logs: Path) -> Path:
    """The folder for the logs of one more attempt; of earlier ones, the last few stay.

    Args:
        logs: ``workers/`` of the run.
    """
    attempts = {int(path.name.removeprefix(ATTEMPT)): path for path in logs.glob(f"{ATTEMPT}*") if is_attempt(path)}
    for number in sorted(attempts)[: max(0, len(attempts) - KEPT + 1)]:
        shutil.rmtree(attempts[number], ignore_errors=True)
    return logs / f"{ATTEMPT}{max(attempts, default=0) + 1}"


def is_attempt(path: Path) -> bool:
    """Whether a folder is that of an attempt, and not somebody else's."""
    return path.is_dir() and not path.is_symlink() and path.name.removeprefix(ATTEMPT).isdecimal()


class Workers:
    """Worker processes on this machine, which end together.

    Args:
        count: how many.
        command: script and arguments.
        logs: new folder for what each of them says.
        board: on which workers note that they have something to save; None gives them one.
    """

    def __init__(self, count: int, command: Sequence[str], logs: Path, board: stop.Board | None = None) -> None:
        logs.mkdir(parents=True)
        self.logs, self._board, self._shown, self._rest = logs, board or stop.Board(), 0, ""
        options = {
            "worker_num": count,
            "local_worker_num": count,
            "master_port": _free_port(),
            "log_dir": logs,
            "join": True,
            "tail_worker_log": count,  # MS-47: there is no such worker, so msrun repeats nobody's log
        }
        msrun = [sys.executable, "-c", MSRUN]
        # MS-44: msrun starts scripts by the first python of the path, which need not be this one
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        width = str(shutil.get_terminal_size().columns)
        environment = {**os.environ, "PATH": path, "GLOG_v": "3", "COLUMNS": width, LAUNCHER: str(os.getpid())}
        environment[stop.ADDRESS] = self._board.address
        with (logs / "msrun.log").open("wb") as log, stop.blocked():
            self.msrun = subprocess.Popen(  # noqa: S603 - what the user started, again
                [*msrun, *(f"--{name}={value}" for name, value in options.items()), *command],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C comes here alone, and the workers are told
            )
        self._processes: set[psutil.Process] = {psutil.Process(self.msrun.pid)}
        self._numbers: dict[int, str] = {}  # of workers, by process id
        self._told: set[int] = set()  # workers, by process id, that know of the wish to stop

    def join(self) -> None:
        """Waits for all of them, and shows what the first one says.

        Raises:
            UserError: one of them failed, in its own words where it has some; Died where it may do better next time.
            Interrupted: they were asked to stop, and did.
        """
        try:
            with stop.polled():
                ends = None  # when the others have had their time to say something, once a worker has failed
                while self.msrun.poll() is None and (ends is None or time.monotonic() < ends):
                    self._look()
                    if stop.wished() and (stop.insisted() or not self._board.unsaved):
                        break
                    if stop.wished():
                        self._pass_on()
                    if ends is None and FAILED.search(self._msrun_says()):
                        ends = time.monotonic() + GRACE
                    time.sleep(LOOK)
                self._look()
        finally:
            self._end_all()
        if stopped := self._words(r"^stopped .*$"):  # also if a worker alone was told to
            raise Interrupted(stopped)
        if self.msrun.returncode == 0 and self._board.left:  # a worker was told to, and its log is on a full disk
            raise Interrupted(stopped_early())
        if self.msrun.returncode == 0:
            return
        problem = self._problem()
        if stop.wished() and isinstance(problem, Died):
            raise Interrupted(stopped_early())
        raise problem

    def _pass_on(self) -> None:
        """Tells every worker of the wish to stop, once each: also those that are started later."""
        for process in self._processes:
            if process.pid in self._numbers and process.pid not in self._told:
                self._told.add(process.pid)
                with suppress(psutil.Error):  # ended meanwhile
                    process.send_signal(signal.SIGTERM)

    def _look(self) -> None:
        """Shows what the first worker has said since the last look."""
        self._find()
        try:
            with (self.logs / "worker_0.log").open("rb") as file:
                file.seek(self._shown)
                new = file.read()
        except OSError:  # not there yet, or no more
            return
        self._shown += len(new)
        *whole, self._rest = re.split(r"(?<=[\n\r])", self._rest + new.decode(errors="replace"))
        for line in whole:
            if not NOISE.match(line) and not line.startswith(("error: ", "stopped ")):  # those come at the end
                sys.stdout.write(line)
        sys.stdout.flush()

    def _find(self) -> None:
        with suppress(psutil.Error):
            self._processes.update(psutil.Process(self.msrun.pid).children(recursive=True))
        for process in self._processes:
            if process.pid not in self._numbers:
                with suppress(psutil.Error):
                    environment = process.environ()
                    if environment.get("MS_ROLE") == "MS_WORKER":
                        self._numbers[process.pid] = environment["RANK_ID"]

    def _end_all(self) -> None:
        for process in self._processes:
            with suppress(psutil.Error):
                process.kill()  # by its id and start time: never another process that got the same number
        psutil.wait_procs(self._processes, timeout=PATIENCE)

    def _words(self, pattern: str) -> str:
        """The first line of any worker that matches, the workers in order."""
        for log in sorted(self.logs.glob("worker_*.log"), key=lambda file: int(file.stem.split("_")[1])):
            if found := re.search(pattern, _content(log).replace("\r", "\n"), re.MULTILINE):
                return found.group()
        return ""

    def _problem(self) -> UserError:
        failed = FAILED.search(self._msrun_says())
        own = self._words(r"^error: .*$").removeprefix("error: ")
        if failed and int(failed.group(2)) < 0:
            name = signal.Signals(-int(failed.group(2))).name
            worker = f"worker {self._numbers.get(int(failed.group(1)), '?')} (process {failed.group(1)})"
            return Died(f"{worker} was ended by {name}, and the others with it; see {self.logs}")
        if own:
            return (Died if LOST.search(own) else UserError)(own)
        return Died(self._words(r"^\w*(Error|Exception): .*$") or f"a worker ended without a word; see {self.logs}")

    def _msrun_says(self) -> str:
        return _content(self.logs / "msrun.log")


def _content(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace")
    except OSError:  # somebody has deleted it
        return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

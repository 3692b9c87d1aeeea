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

from mindspore_palm.config import Settings
from mindspore_palm.errors import Interrupted, UserError
from mindspore_palm.parallel.context import LOST, choose_device, is_worker
from mindspore_palm.parallel.host import build
from mindspore_palm.train.finetune import open_data
from mindspore_palm.train.folder import Found, check_run_folder, finished, only_run
from mindspore_palm.train.loop import check_settings, train
from mindspore_palm.train.memory import check_memory
from mindspore_palm.train.restart import LAUNCHER, Died, OneProcess, end_with_launcher, with_restarts
from mindspore_palm.train.resume import Start

NOISE = re.compile(r"\[(INFO|WARNING|ERROR|CRITICAL)\] ")  # how a line of MindSpore's own begins
FAILED = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")  # msrun's words
MSRUN = f"""
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: None)  # MS-48: who ends a job may tell all its processes; workers save first
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from mindspore_palm.train.restart import end_with_launcher
end_with_launcher()
from mindspore.parallel.cluster.run import main
main()
"""
LOOK = 0.1  # seconds between two looks at what the workers say
GRACE = 3.0  # MS-46: seconds that the others have when one has failed; msrun's scheduler would take half a minute
PATIENCE = 60.0  # seconds for processes that were killed to be gone


def run(settings: Settings, start: Start, command: Sequence[str]) -> None:
    """Trains here, as one of the workers that msrun started, or by workers that are started now.

    Args:
        settings: all of them.
        start: how it begins.
        command: script and arguments, with which workers are started.

    Raises:
        UserError, Interrupted: as ``train``.
    """
    devices = settings.parallel.devices
    end_with_launcher()
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        signal.signal(signal.SIGTERM, lambda *_: None)  # as msrun (MS-45)
    if is_worker():
        try:
            train(settings, start)
        except Interrupted as stop:  # MS-49, saved: msrun would take another exit code for a failure
            print(stop, flush=True)
    elif devices == 1 and (not start.max_restarts or LAUNCHER in os.environ):
        train(settings, start)
    elif devices == 1:
        with_restarts(lambda again: OneProcess(again).join(), command, start.max_restarts)
    elif (kind := choose_device(settings.train.device)[0]) != "CPU":
        raise UserError(
            f"parallel asks for {devices} devices; on {kind}, start a worker for each: msrun --worker_num={devices} "
            f"--local_worker_num=<devices of this machine> --join=True {' '.join(command)}"
        )
    else:
        check_memory(settings, check_settings(settings, "CPU"))
        folder = Path(settings.train.output)
        with only_run(folder):
            if check_run_folder(settings, start) is Found.FINISHED:
                print(finished(settings))
                return
        build.extension()  # what must be built is built once, and what is missing is said once
        open_data(settings)
        workers = folder / "workers"
        with_restarts(lambda again: Workers(devices, again, workers).join(), command, start.max_restarts)


class Workers:
    """Worker processes on this machine, which end together.

    Args:
        count: how many.
        command: script and arguments.
        logs: folder for what each of them says; emptied first.
    """

    def __init__(self, count: int, command: Sequence[str], logs: Path) -> None:
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        self.logs, self.interrupted, self._shown, self._rest = logs, False, 0, ""
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
        with (logs / "msrun.log").open("wb") as log:
            self.msrun = subprocess.Popen(  # noqa: S603 - what the user started, again
                [*msrun, *(f"--{name}={value}" for name, value in options.items()), *command],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C comes here alone, and the workers are told
            )
        self._processes: set[psutil.Process] = {psutil.Process(self.msrun.pid)}
        self._numbers: dict[int, str] = {}  # of workers, by process id

    def join(self) -> None:
        """Waits for all of them, and shows what the first one says.

        Raises:
            UserError: one of them failed, in its own words where it has some; Died where it may do better next time.
            Interrupted: they were asked to stop, and did.
        """
        before = {number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            ends = None  # when the others have had their time to say something, once a worker has failed
            while self.msrun.poll() is None and (ends is None or time.monotonic() < ends):
                self._look()
                if ends is None and FAILED.search(self._msrun_says()):
                    ends = time.monotonic() + GRACE
                time.sleep(LOOK)
            self._look()
        except KeyboardInterrupt:
            raise Interrupted("stopped at once; no model was saved") from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._end_all()
        if self.interrupted and not FAILED.search(self._msrun_says()):
            raise Interrupted(self._words(r"^stopped .*$") or "stopped before training began")
        if self.msrun.returncode != 0:
            raise self._problem()

    def _ask_to_stop(self, number: int, _: object) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self._find()
        for process in self._processes:
            if process.pid in self._numbers:
                with suppress(psutil.Error):  # ended meanwhile
                    process.send_signal(number)

    def _look(self) -> None:
        """Shows what the first worker has said since the last look."""
        self._find()
        log = self.logs / "worker_0.log"
        if not log.exists():
            return
        with log.open("rb") as file:
            file.seek(self._shown)
            new = file.read()
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
            found = re.search(pattern, log.read_text(errors="replace").replace("\r", "\n"), re.MULTILINE)
            if found:
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
        return (self.logs / "msrun.log").read_text(errors="replace")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

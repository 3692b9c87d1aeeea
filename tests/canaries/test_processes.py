"""Canaries: what msrun and MindSpore's builder do that the package works around. msrun is real, its workers are not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from canaries.register import still
from parallel.msrun import end_all

WORKERS = 2
START, PAUSE = 60.0, 3.0  # seconds that msrun may take to start; and in which something would have happened
PYTHON = """#!/bin/sh
# The first "python" of the path: notes who it is and what it was told to run, says so, and does what the test asks for.
echo "$MS_ROLE $*" > "$OUT/$MS_ROLE.$RANK_ID.new"
mv "$OUT/$MS_ROLE.$RANK_ID.new" "$OUT/$MS_ROLE.$RANK_ID"
echo "$MS_ROLE $RANK_ID speaks"
if [ "$MS_ROLE" = MS_WORKER ] && [ -n "$FAIL" ]; then exit 7; fi
exec sleep 60
"""


class Job:
    """msrun with two workers."""

    def __init__(self, out: Path, fail: bool) -> None:
        self.out = out
        (out / "bin").mkdir()
        (out / "bin" / "python").write_text(PYTHON)
        (out / "bin" / "python").chmod(0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-c", "from mindspore.parallel.cluster.run import main; main()"]
        command += [f"--worker_num={WORKERS}", f"--local_worker_num={WORKERS}", f"--master_port={port}", "--join=True"]
        path = os.pathsep.join([str(out / "bin"), os.environ["PATH"]])
        with (out / "msrun.log").open("wb") as log:
            self.msrun = subprocess.Popen(
                [*command, f"--log_dir={out / 'log'}", "script.py"],
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": path, "OUT": str(out), "FAIL": "1" if fail else "", "GLOG_v": "2"},
                cwd=out,
                start_new_session=True,
            )
        self._seen: set[psutil.Process] = set()

    def started(self, role: str) -> list[str]:
        """What the processes of a role were told to run."""
        return [file.read_text() for file in self.out.glob(f"{role}.?")]

    def says(self) -> str:
        return (self.out / "msrun.log").read_text(errors="replace")

    def wait(self, done) -> None:
        end = time.monotonic() + START
        while not done():
            assert time.monotonic() < end, self.says()
            self.find()
            time.sleep(0.05)
        self.find()

    def find(self) -> list[psutil.Process]:
        """Its processes that are alive: those that it has, and those that it had."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen.update(psutil.Process(self.msrun.pid).children(recursive=True))
        alive = []
        for process in self._seen:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        return alive

    def end(self) -> None:
        for process in self.find():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        end_all(self.msrun, self.out)


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """msrun some time after a worker has failed."""
    job = Job(tmp_path_factory.mktemp("failed"), fail=True)
    try:
        job.wait(lambda: "kill all other workers" in job.says() or job.msrun.poll() is not None)
        time.sleep(PAUSE)
        yield job
    finally:
        job.end()


@pytest.fixture(scope="module")
def orphaned(tmp_path_factory):
    """The workers of an msrun that was told to end."""
    job = Job(tmp_path_factory.mktemp("orphaned"), fail=False)
    try:
        job.wait(lambda: len(job.started("MS_WORKER")) == WORKERS)
        job.msrun.send_signal(signal.SIGTERM)
        job.msrun.wait(START)
        time.sleep(PAUSE / 3)
        yield job
    finally:
        job.end()


def test_ms_44_msrun_runs_the_first_python_of_the_path(failed):
    seen = failed.started("MS_WORKER")
    still("MS-44", bool(seen), seen)  # one may be ended before it has noted anything


def test_ms_45_msrun_runs_the_script_in_its_scheduler_too(failed):
    seen = failed.started("MS_SCHED")
    still("MS-45", seen == ["MS_SCHED script.py\n"], seen)


def test_ms_46_msrun_waits_for_its_scheduler_when_a_worker_has_failed(failed):
    still("MS-46", failed.msrun.poll() is None, failed.says())


def test_ms_47_msrun_repeats_what_workers_say(failed):
    seen = failed.says()
    still("MS-47", "MS_WORKER 0 speaks" in seen or "MS_WORKER 1 speaks" in seen, seen)


def test_ms_48_workers_outlive_an_msrun_that_is_told_to_end(orphaned):
    seen = [process.cmdline() for process in orphaned.find()]
    assert orphaned.msrun.poll() is not None
    still("MS-48", len(seen) >= WORKERS, seen)


def test_ms_49_every_exit_code_but_zero_is_a_failure(failed):
    still("MS-49", "Error code: 7" in failed.says(), failed.says())


def test_ms_50_a_build_waits_for_one_that_was_killed(tmp_path, device):
    from mindspore.ops import CustomOpBuilder

    source, lock = tmp_path / "empty.cc", tmp_path / "build.lock"
    source.write_text("")
    lock.touch()  # as a killed build leaves it
    builder = CustomOpBuilder("canary", [str(source)], backend="CPU", build_dir=str(tmp_path))
    thread = threading.Thread(target=build, args=(builder,), daemon=True)
    thread.start()
    thread.join(PAUSE / 3)
    waits = thread.is_alive()
    lock.unlink(missing_ok=True)
    thread.join(START)
    still("MS-50", waits)


def build(builder) -> None:
    """Builds, or not: an empty source makes no module."""
    with contextlib.suppress(Exception):
        builder.build()


HANDLED = """
import os, signal, time
import numpy as np
import mindspore as ms
from mindspore import Tensor, nn

class Double(nn.Cell):
    def construct(self, x):
        return x + x

ms.set_context(mode=ms.GRAPH_MODE)
signal.signal(signal.SIGINT, lambda *_: os._exit(7))
Double()(Tensor(np.zeros(3, np.float32)))
os.kill(os.getpid(), signal.SIGINT)
time.sleep(5)
"""


def test_ms_68_a_graph_takes_the_place_of_the_handler_of_ctrl_c(tmp_path):
    """The process ends by SIGTERM, where the handler of the program would have ended it with 7."""
    (tmp_path / "handled.py").write_text(HANDLED)
    done = subprocess.run([sys.executable, tmp_path / "handled.py"], capture_output=True, text=True, timeout=120)
    still("MS-68", done.returncode == -signal.SIGTERM, done)

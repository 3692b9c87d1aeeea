"""Stop requests from the first line of a command to its last, and the supervisor that enforces them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mindspore_palm.launch import stop

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]
COMMAND = """
import ctypes, os, subprocess, sys, time
from mindspore_palm.launch import stop
from mindspore_palm.errors import Interrupted
from mindspore_palm.launch.command import run_process

def ready():
    print("ready", flush=True)

def hang():
    lock, library = ctypes.create_string_buffer(64), ctypes.PyDLL(None)  # holding Python's lock
    library.pthread_mutex_lock(lock)
    library.pthread_mutex_lock(lock)

def wait():
    for _ in range(600):
        if stop.requested():
            raise Interrupted("stopped after step 7")
        time.sleep(0.05)

def main():
    {body}

sys.exit(run_process(main, trains=True, results=False))
"""


@contextlib.contextmanager
def command(body, before="", **options):
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", before + COMMAND.format(body=body)],
        cwd=ROOT,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
        **options,
    )
    members = []
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.Error):
            members = psutil.Process(process.pid).children(recursive=True)
        for member in [process, *members]:
            with contextlib.suppress(psutil.Error):
                member.kill()
        process.communicate()


def started(process):
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_with_nothing_to_save_a_command_ends_at_once(number):
    with command("ready(); time.sleep(100)") as process:
        started(process).send_signal(number)
        _, err = process.communicate(timeout=10)
        assert process.returncode == 130
        assert re.fullmatch("stopped before training began\n|stopped; .*\n", err)  # or it was asleep already


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_with_something_to_save_is_given_time(number):
    with command("stop.mark_unsaved(); ready(); time.sleep(3); wait()") as process:
        started(process).send_signal(number)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (130, "stopped after step 7\n")
        assert "Ctrl-C again stops now, without saving" in out


@pytest.mark.parametrize("number", SIGNALS)
def test_a_process_that_hangs_in_a_library_is_killed(number):
    """It holds Python's lock, as MindSpore does while it compiles."""
    with command("ready(); hang()") as process:
        started(process)
        time.sleep(1)  # until it hangs
        process.send_signal(number)
        _, err = process.communicate(timeout=15)
        assert process.returncode == 130
        assert "resumes from the last checkpoint, or starts over if there is none" in err


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_pending_from_before_the_first_line_is_handled(number):
    with stop.blocked(), command("ready(); time.sleep(100)") as process:
        process.send_signal(number)
        process.communicate(timeout=10)
        assert process.returncode == 130


def test_a_second_ctrl_c_does_not_wait():
    with command("stop.mark_unsaved(); ready(); time.sleep(100)") as process:
        started(process).send_signal(signal.SIGINT)
        time.sleep(stop.FORCE_AFTER + 0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
        assert process.returncode == 130


def test_one_ctrl_c_received_by_all_processes_is_one_request():
    with command("stop.mark_unsaved(); ready(); time.sleep(2); wait()") as process:
        started(process)
        for member in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            member.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (130, "stopped after step 7\n")


def test_a_hangup_that_the_user_ignores_stays_ignored():
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with command("ready(); time.sleep(2)", before) as process:
        started(process)
        for member in [psutil.Process(process.pid), *psutil.Process(process.pid).children()]:
            member.send_signal(signal.SIGHUP)
        process.communicate(timeout=20)
        assert process.returncode == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_a_finished_run_ignores_stop_requests(number):
    with command("stop.mark_unsaved(); stop.mark_done(); ready(); time.sleep(2)") as process:
        started(process).send_signal(number)
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("ends", "code"), [("", 0), ("; os._exit(3)", 3), ("; os.kill(os.getpid(), 9)", -9), ("; os.abort()", -6)]
)
def test_nothing_that_a_command_has_started_outlives_it(ends, code):
    """However it ends; and the exit code says how."""
    body = "print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid, flush=True)" + ends
    with command(body) as process:
        child = psutil.Process(int(process.stdout.readline()))
        assert process.wait(timeout=20) == code
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_killed_command_takes_its_worker_with_it():
    with command("ready(); time.sleep(100)") as process:
        started(process)
        members = psutil.Process(process.pid).children(recursive=True)
        assert members
        process.kill()
        assert not psutil.wait_procs(members, timeout=10)[1]


def test_in_a_notebook_a_stop_request_is_an_exception_and_handlers_are_restored():
    """The process is not ended, and has its own handlers again after the run."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop.handlers():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        assert stop.requested() and not stop.forced()
        time.sleep(stop.FORCE_AFTER + 0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before and not stop.requested()

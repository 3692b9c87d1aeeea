"""Processes that die are restarted, as often as allowed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mindspore_palm.errors import OVERWRITES, Interrupted, UserError, same_command
from mindspore_palm.launch import stop
from mindspore_palm.launch.process import ChildProcess, ProcessDied, with_restarts


@pytest.fixture(autouse=True)
def no_overwrites(monkeypatch):
    monkeypatch.setenv(OVERWRITES, "")
    monkeypatch.delenv(OVERWRITES)


def attempts(outcomes):
    """An attempt that ends with each of the outcomes in turn, and the commands that it was given.

    An outcome in a tuple comes after the run was started in its folder.
    """
    seen, left = [], iter(outcomes)

    def attempt(command, flags):
        seen.append(list(command))
        outcome = next(left)
        if isinstance(outcome, tuple):
            flags.set(flags.STARTED)
            (outcome,) = outcome
        if outcome:
            raise outcome

    return attempt, seen


def test_restarts_until_it_succeeds(capsys):
    attempt, seen = attempts([(ProcessDied("worker 1 died"),), ProcessDied("worker 0 died"), None])
    with_restarts(attempt, ["train.py", "--overwrite", "a=b"], 5)
    assert seen == [["train.py", "--overwrite", "a=b"], ["train.py", "a=b"], ["train.py", "a=b"]]  # deletes once
    assert "worker 0 died; starting again from the last checkpoint (2 of 5)" in capsys.readouterr().out


def test_an_attempt_that_dies_before_deleting_the_earlier_run_leaves_that_to_the_next():
    """Otherwise the second attempt would resume the run that was to be deleted."""
    attempt, seen = attempts([ProcessDied("early"), (ProcessDied("late"),), None])
    with_restarts(attempt, ["train.py", "--overwrite", "a=b"], 5)
    assert seen == [["train.py", "--overwrite", "a=b"], ["train.py", "--overwrite", "a=b"], ["train.py", "a=b"]]


def test_attempts_without_overwrite_still_name_the_command_of_the_user(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert same_command() == "the same command"
    attempt, _ = attempts([(ProcessDied("late"),), None])
    with_restarts(attempt, ["train.py", "--overwrite"], 5)
    assert same_command() == "the same command without --overwrite"


def test_a_process_that_was_asked_to_stop_is_not_restarted(monkeypatch):
    monkeypatch.setattr(stop, "requested", lambda: True)
    attempt, seen = attempts([ProcessDied("was ended by SIGTERM"), None])
    with pytest.raises(Interrupted, match="the same command resumes from the last checkpoint"):
        with_restarts(attempt, ["train.py"], 2)
    assert len(seen) == 1


def test_no_more_restarts_than_allowed():
    attempt, seen = attempts([ProcessDied("first"), ProcessDied("second"), None])
    with pytest.raises(ProcessDied, match="second"):
        with_restarts(attempt, ["train.py"], 1)
    assert len(seen) == 2
    attempt, seen = attempts([ProcessDied("first"), None])
    with pytest.raises(ProcessDied):
        with_restarts(attempt, ["train.py"], 0)
    assert len(seen) == 1


def test_user_errors_are_not_retried():
    attempt, seen = attempts([UserError("no such file"), None])
    with pytest.raises(UserError, match="no such file"):
        with_restarts(attempt, ["train.py"], 9)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        ("pass", None),
        ("raise ValueError", ProcessDied),
        ("import os; os.kill(os.getpid(), 9)", ProcessDied),
        ("import sys; sys.exit(2)", SystemExit),
    ],
)
def test_how_a_process_ends(code, raised):
    if raised is None:
        ChildProcess(["-c", code]).join()
        return
    with pytest.raises(raised) as caught:
        ChildProcess(["-c", code]).join()
    assert raised is ProcessDied or caught.value.code == 2


HANGS = "lock, c = ctypes.create_string_buffer(64), ctypes.PyDLL(None); [c.pthread_mutex_lock(lock) for _ in range(2)]"
LISTENS = """
import ctypes, sys, time
from mindspore_palm.launch import stop
time.sleep({late})
stop.listen()
print("ready", flush=True)
{then}
"""
FORWARDS = """
import sys
from mindspore_palm.errors import Interrupted
from mindspore_palm.launch.process import ChildProcess
try:
    ChildProcess(["-c", sys.argv[1]]).join()
except Interrupted:
    sys.exit(99)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize(
    ("late", "then", "code"),
    [
        (0, "while True: time.sleep(0.1)", 130),  # with nothing to save, it ends at once
        (1, "while True: time.sleep(0.1)", 130),  # it is signalled before it listens
        (0, HANGS, 99),  # it cannot handle signals, and is killed
    ],
    ids=["waits", "starts", "computes in C"],
)
def test_a_stop_request_reaches_a_process_at_any_time(number, late, then, code):
    launcher = subprocess.Popen(
        [sys.executable, "-c", FORWARDS, LISTENS.format(late=late, then=then)], stdout=subprocess.PIPE
    )
    try:
        end = time.monotonic() + 30
        while not (others := psutil.Process(launcher.pid).children()) and time.monotonic() < end:
            time.sleep(0.02)
        if not late:
            assert launcher.stdout.readline() == b"ready\n"
        time.sleep(0.3)
        launcher.send_signal(number)
        assert launcher.wait(timeout=20) == code
        assert not psutil.wait_procs(others, timeout=5)[1]
    finally:
        for process in (launcher, *others):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        launcher.wait()


WAITS = """
import ctypes, time
from mindspore_palm.launch.process import exit_with_launcher
time.sleep({late})
exit_with_launcher()
print("ready", flush=True)
ctypes.PyDLL(None).sleep(100)  # holding Python's lock, as a collective that waits for a worker that is gone
"""
STARTS = """
import subprocess, sys
from mindspore_palm.launch.process import exit_with_launcher
exit_with_launcher()
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
child.wait()
"""
LAUNCHES = "import sys; from mindspore_palm.launch.process import ChildProcess; ChildProcess(sys.argv[1:]).join()"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process that its parent is gone")
@pytest.mark.parametrize("late", [0, 2])
def test_all_processes_end_with_their_launcher(late):
    """The launcher is killed while its grandchild waits in C, or before the grandchild has asked to end with it."""
    command = [sys.executable, "-c", LAUNCHES, "-c", STARTS, WAITS.format(late=late)]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE)
    others = []
    try:
        worker = psutil.Process(int(launcher.stdout.readline()))
        others = psutil.Process(launcher.pid).children(recursive=True)
        assert worker in others and len(others) == 2
        if not late:
            assert launcher.stdout.readline() == b"ready\n"
        launcher.kill()
        _, alive = psutil.wait_procs(others, timeout=20)
        assert not alive
    finally:
        for process in (launcher, *others):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        launcher.wait()

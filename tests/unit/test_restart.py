"""Starting again what died, as often as was allowed."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import psutil
import pytest

from mindspore_palm.errors import UserError
from mindspore_palm.train.restart import Died, OneProcess, with_restarts


def attempts(outcomes):
    """An attempt that ends in each of the outcomes in turn, and the commands that it was given."""
    seen, left = [], iter(outcomes)

    def attempt(command):
        seen.append(list(command))
        if outcome := next(left):
            raise outcome

    return attempt, seen


def test_again_until_it_ends_well(capsys):
    attempt, seen = attempts([Died("worker 1 died"), Died("worker 0 died"), None])
    with_restarts(attempt, ["train.py", "--overwrite", "a=b"], 5)
    assert seen == [["train.py", "--overwrite", "a=b"], ["train.py", "a=b"], ["train.py", "a=b"]]  # deletes once
    assert "worker 0 died; starting again from the last checkpoint (2 of 5)" in capsys.readouterr().out


def test_no_more_than_was_allowed():
    attempt, seen = attempts([Died("first"), Died("second"), None])
    with pytest.raises(Died, match="second"):
        with_restarts(attempt, ["train.py"], 1)
    assert len(seen) == 2
    attempt, seen = attempts([Died("first"), None])
    with pytest.raises(Died):
        with_restarts(attempt, ["train.py"], 0)
    assert len(seen) == 1


def test_what_the_user_must_mend_is_not_tried_again():
    attempt, seen = attempts([UserError("no such file"), None])
    with pytest.raises(UserError, match="no such file"):
        with_restarts(attempt, ["train.py"], 9)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        ("pass", None),
        ("raise ValueError", Died),
        ("import os; os.kill(os.getpid(), 9)", Died),
        ("import sys; sys.exit(2)", SystemExit),
    ],
)
def test_how_a_process_ends(code, raised):
    if raised is None:
        OneProcess(["-c", code]).join()
        return
    with pytest.raises(raised) as caught:
        OneProcess(["-c", code]).join()
    assert raised is Died or caught.value.code == 2


WAITS = """
import ctypes, time
from mindspore_palm.train.restart import end_with_launcher
time.sleep({late})
end_with_launcher()
print("ready", flush=True)
ctypes.PyDLL(None).sleep(100)  # with Python's lock, as a collective that waits for a worker that is gone
"""
STARTS = """
import subprocess, sys
from mindspore_palm.train.restart import end_with_launcher
end_with_launcher()
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
child.wait()
"""
LAUNCHES = "import sys; from mindspore_palm.train.restart import OneProcess; OneProcess(sys.argv[1:]).join()"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process that its parent is gone")
@pytest.mark.parametrize("late", [0, 2])
def test_all_processes_end_with_the_one_that_started_them(late):
    """The launcher is killed, and its grandchild waits in C, or does not know yet that it has a launcher."""
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

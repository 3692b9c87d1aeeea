"""Starting again what died, as often as was allowed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from mindspore_palm.errors import UserError
from mindspore_palm.train.restart import LAUNCHER, Died, OneProcess, with_restarts


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


def test_a_process_ends_with_the_one_that_started_it():
    launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    script = "from mindspore_palm.train.restart import end_with_launcher\nimport time\nend_with_launcher()\n"
    script += "print('ready', flush=True)\ntime.sleep(100)"
    watched = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, LAUNCHER: str(launcher.pid)}, stdout=subprocess.PIPE
    )
    try:
        assert watched.stdout.readline() == b"ready\n"
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
        assert watched.wait(timeout=20) == 1
    finally:
        for process in (launcher, watched):
            if psutil.pid_exists(process.pid):
                process.kill()
            process.wait()

"""Where a process cannot work, it ends in a sentence before it begins; and limits that are met later are named."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from mindspore_palm import preflight
from mindspore_palm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from mindspore_palm.launch.command import run_process
def main():
    import threading
    print("done", threading.active_count())
sys.exit(run_process(main))
"""


def start(tmp_path, prepare=lambda: None, **variables):
    """A command that does nothing, in a process that was prepared: its code, output and error."""
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(root=str(ROOT))],
        cwd=work,
        env={**os.environ, **variables},
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stdout, ended.stderr


def limit(name, most):
    return lambda: resource.setrlimit(getattr(resource, name), (most, most))


def test_nothing_is_left_behind(tmp_path):
    """No thread, no memory, the umask that was."""
    mask = os.umask(0o027)
    try:
        preflight.check()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)
    assert start(tmp_path) == (0, "done 1\n", "")


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (limit("RLIMIT_AS", 400 << 20), "this process may not take 512 MB of memory (ulimit -v, ulimit -d)"),
        (limit("RLIMIT_DATA", 200 << 20), "this process may not take 512 MB of memory (ulimit -v, ulimit -d)"),
        (lambda: os.umask(0o777), "umask 0777 takes new files from their owner; set it to 0022 or 0077"),
        (lambda: shutil.rmtree(os.getcwd()), "the working folder was deleted; change into a folder that is there"),
    ],
)
def test_where_it_cannot_work_it_ends_in_a_sentence(tmp_path, prepare, said):
    code, out, err = start(tmp_path, prepare)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}") and err.count("\n") == 1


def test_variables_of_the_progress_bar_are_numbers(tmp_path):
    code, out, err = start(tmp_path, TQDM_MININTERVAL="often", TQDM_NCOLS="80")
    assert (code, out) == (2, "")
    assert err.startswith("error: TQDM_") and "'often'" in err and err.count("\n") == 1
    assert start(tmp_path, TQDM_MININTERVAL="5", TQDM_DISABLE="1") == (0, "done 1\n", "")


def test_threads_that_cannot_be_started_are_told(monkeypatch):
    def fail(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", fail)
    with pytest.raises(UserError, match="may not start as many threads as"):
        preflight.check_threads(1)


def test_warnings_stay_warnings(tmp_path):
    assert start(tmp_path, PYTHONWARNINGS="error")[:2] == (0, "done 1\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preflight.check()
        with pytest.warns(DeprecationWarning):
            warnings.warn("old", DeprecationWarning, stacklevel=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")  # what a user has silenced stays silent
        preflight.check()
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert caught == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "the memory that this process may take did not suffice"),
        (RuntimeError("Memory isn't enough and alloc failed, kernel name: x"), "did not suffice"),
        (RuntimeError("#umsg#Memory not enough:#umsg#"), "did not suffice"),
        (RuntimeError("std::bad_alloc"), "did not suffice"),
        (ImportError("libx.so: failed to map segment from shared object"), "did not suffice"),
        (RuntimeError("Resource temporarily unavailable"), "may not start as many threads"),
        (RuntimeError("can't start new thread"), "may not start as many threads"),
        (RuntimeError("the primitive Add wants two inputs, not enough of them are there"), ""),
        (ImportError("No module named mindspore"), ""),
    ],
)
def test_errors_of_limits_are_told_from_others(error, said):
    explained = preflight.explain(error)
    assert said in explained
    assert bool(explained) == bool(said)

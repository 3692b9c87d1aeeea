"""A process that cannot run here ends with one message before it starts; limits that it hits later are named."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from mindspore_palm import preflight
from mindspore_palm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
import threading
sys.path.insert(0, {root!r})
from mindspore_palm.launch.command import run_process
def main():
    import threading
    print("done", threading.active_count())
sys.exit(run_process(main))
"""


def start(tmp_path, prepare=lambda: None, **variables):
    """Runs an empty command in a process set up by ``prepare``; returns its exit code, output and errors."""
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


def test_the_checks_leave_nothing_behind(tmp_path):
    """No thread and no memory, and the umask is unchanged."""
    mask = os.umask(0o027)
    try:
        preflight.check()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)
    assert start(tmp_path) == (0, "done 1\n", "")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (limit("RLIMIT_AS", 400 << 20), "this process may not take 512 MB of memory (ulimit -v, ulimit -d)"),
        (limit("RLIMIT_DATA", 200 << 20), "this process may not take 512 MB of memory (ulimit -v, ulimit -d)"),
        (lambda: os.umask(0o777), "umask 0777 denies new files to their owner; set it to 0022 or 0077"),
        (lambda: shutil.rmtree(os.getcwd()), "the working folder was deleted; change to one that exists"),
    ],
)
def test_a_process_that_cannot_run_here_ends_with_one_message(tmp_path, prepare, message):
    code, out, err = start(tmp_path, prepare)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}") and err.count("\n") == 1


def test_invalid_variables_of_the_progress_bar_are_refused(tmp_path):
    code, out, err = start(tmp_path, TQDM_MININTERVAL="often", TQDM_NCOLS="80")
    assert (code, out) == (2, "")
    assert err.startswith("error: TQDM_") and "'often'" in err and err.count("\n") == 1
    assert start(tmp_path, TQDM_MININTERVAL="5", TQDM_DISABLE="1") == (0, "done 1\n", "")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"GLOG_v": "loud"}, "GLOG_v = loud is not a value that MindSpore accepts; set it to 0 to 4, or unset it"),
        ({"GLOG_stderrthreshold": "5"}, "GLOG_stderrthreshold = 5 is not"),
        ({"GLOG_logtostderr": "yes"}, "set it to 0 or 1"),
        ({"GLOG_logtostderr": "0"}, "GLOG_log_dir names no folder"),
        ({"logger_maxBytes": "many"}, "set it to a number of bytes"),
        ({"logger_backupCount": "-1"}, "set it to a number of files"),
        ({"GLOG_v": "3", "GLOG_logtostderr": "1", "logger_maxBytes": "100", "logger_backupCount": ""}, ""),
    ],
)
def test_invalid_variables_of_mindspores_log_are_refused(variables, message, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if not message:
        return preflight.check()
    with pytest.raises(UserError, match=message):
        preflight.check()


def test_threads_that_cannot_be_started_are_reported(monkeypatch):
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
        warnings.simplefilter("ignore")  # a user's filter stays in place
        preflight.check()
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert caught == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "this process ran out of the memory that it may use"),
        (RuntimeError("Memory isn't enough and alloc failed, kernel name: x"), "ran out of the memory"),
        (RuntimeError("#umsg#Memory not enough:#umsg#"), "ran out of the memory"),
        (RuntimeError("std::bad_alloc"), "ran out of the memory"),
        (ImportError("libx.so: failed to map segment from shared object"), "ran out of the memory"),
        (RuntimeError("Resource temporarily unavailable"), "may not start as many threads"),
        (RuntimeError("can't start new thread"), "may not start as many threads"),
        (RuntimeError("the primitive Add wants two inputs, not enough of them are there"), ""),
        (ImportError("cannot import name Tensor from mindspore"), ""),
        (ModuleNotFoundError("No module named 'yaml'", name="yaml"), "the package yaml is not installed for /"),
        (ModuleNotFoundError("", name="mindspore.parallel"), "the package mindspore is not installed for /"),
        (ModuleNotFoundError("", name="mindspore_palm.lost"), ""),
    ],
)
def test_errors_from_limits_are_recognized(error, message):
    explained = preflight.explain(error)
    assert message in explained
    assert bool(explained) == bool(message)


def test_threads_of_the_check_take_no_signal(monkeypatch):
    """One that the system has not ended yet would be killed by a signal that the main thread has blocked."""
    masks, wait = [], threading.Event.wait

    def noting(event, timeout=None):
        if threading.current_thread() is not threading.main_thread():
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return wait(event, timeout)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with monkeypatch.context() as context:
        context.setattr(threading.Event, "wait", noting)
        preflight.check_threads(2)
    assert len(masks) == 2 and all({signal.SIGTERM, signal.SIGUSR1, signal.SIGINT} <= mask for mask in masks)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before

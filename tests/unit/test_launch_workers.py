"""Logs of attempts: each gets a new folder, a bounded number is kept, and users' own files are not touched."""

from pathlib import Path

import pytest

from mindspore_palm.launch.process import ProcessDied
from mindspore_palm.launch.workers import KEPT_ATTEMPTS, Workers, next_attempt

ROOT = Path(__file__).resolve().parents[2]


def test_each_attempt_gets_a_folder_and_old_ones_are_deleted(tmp_path):
    logs = tmp_path / "workers"
    for number in range(1, KEPT_ATTEMPTS + 4):
        folder = next_attempt(logs)
        assert folder == logs / f"attempt_{number}"
        folder.mkdir(parents=True)
        (folder / "worker_0.log").touch()
    kept = {f"attempt_{number}" for number in range(4, KEPT_ATTEMPTS + 4)}
    assert {path.name for path in logs.iterdir()} == kept


def test_users_files_beside_logs_stay(tmp_path):
    logs = tmp_path / "workers"
    for name in ("attempt_mine", "attempt_²", "notes"):
        (logs / name).mkdir(parents=True)
    (logs / "worker_0.log").write_text("of an older version")
    for _ in range(KEPT_ATTEMPTS + 3):
        next_attempt(logs).mkdir()
    assert {"attempt_mine", "attempt_²", "notes", "worker_0.log"} <= {path.name for path in logs.iterdir()}


CRASHES = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from mindspore_palm.launch import stop
if os.environ["MS_ROLE"] == "MS_WORKER":
    flags = stop.SharedFlags(os.environ[stop.FLAGS_ADDRESS])
    if "done" in sys.argv:
        flags.set(flags.DONE)
    if os.environ["RANK_ID"] == "0":
        os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.mark.parametrize("done", [True, False])
def test_a_worker_that_crashes_after_the_run_is_finished_does_not_fail_it(done, tmp_path):
    """MS-54."""
    script = tmp_path / "crashes.py"
    script.write_text(CRASHES)
    workers = Workers(2, [str(script), *["done"] * done], tmp_path / "logs")
    if done:
        return workers.join()
    with pytest.raises(ProcessDied, match="was ended by SIGSEGV"):
        workers.join()

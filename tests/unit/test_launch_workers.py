"""Logs of attempts: each gets a new folder, a bounded number is kept, and users' own files are not touched."""

from mindspore_palm.launch.workers import KEPT_ATTEMPTS, next_attempt


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

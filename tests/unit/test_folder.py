"""The folder of a run: one run at a time, and what is found in it."""

from __future__ import annotations

import pytest

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.settings import settings_to_yaml
from mindspore_palm.train import folder as module
from mindspore_palm.train.folder import Found, check_run_folder, only_run, start_run_folder
from mindspore_palm.train.progress import Rewind, read_rewinds, write_rewinds
from mindspore_palm.train.resume import Start


@pytest.fixture
def settings(tmp_path):
    return Settings.model_validate({"train": {"output": str(tmp_path / "run")}})


def test_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    with (
        only_run(tmp_path / "run"),
        pytest.raises(UserError, match="another process is training in"),
        only_run(tmp_path / "run"),
    ):
        pass
    with only_run(tmp_path / "run"):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_nothing_is_there(settings, tmp_path):
    assert check_run_folder(settings, Start()) is Found.NOTHING
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    assert check_run_folder(settings, Start(skip_batches=(3, 4))) is Found.NOTHING
    with pytest.raises(UserError, match="--rewind-to 7: there is no checkpoint"):
        check_run_folder(settings, Start(rewind_to=7))


def test_a_run_that_ended_before_its_first_checkpoint(settings, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.csv").write_text("step\n1\n")
    (run / "config.yaml").write_text(settings_to_yaml(settings))
    (run / "notes.txt").write_text("mine")
    assert check_run_folder(settings, Start()) is Found.BEGUN
    other = Settings.model_validate({"train": {"output": str(run), "seed": 4}})
    with pytest.raises(UserError, match=r"train\.seed was 0 and is 4 now"):  # somebody else's
        check_run_folder(other, Start())
    assert check_run_folder(other, Start(overwrite=True)) is Found.NOTHING
    write_rewinds(run, [Rewind("by hand", 0, 0, (8, 16), "--skip-batches 1:2")])
    start_run_folder(run, settings, Found.BEGUN)
    assert not (run / "metrics.csv").exists() and read_rewinds(run) and (run / "notes.txt").exists()
    start_run_folder(run, other, Found.NOTHING)
    assert not read_rewinds(run) and "seed: 4" in (run / "config.yaml").read_text()


@pytest.mark.parametrize("name", ["final", "interrupted"])
def test_a_model_without_checkpoints_is_not_touched(name, settings, tmp_path):
    """As an earlier version left it."""
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="holds a run already, which left no checkpoint"):
        check_run_folder(settings, Start())
    start_run_folder(tmp_path / "run", settings, Found.CHECKPOINTS)
    assert (tmp_path / "run" / name).exists()

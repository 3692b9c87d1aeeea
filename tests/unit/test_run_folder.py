"""The folder of a run: one run at a time, and the states it may be in."""

from __future__ import annotations

import numpy as np
import pytest

from mindspore_palm.checkpoint.progress import Rewind, read_rewinds, write_rewinds
from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.settings import settings_to_yaml
from mindspore_palm.train import run_folder as module
from mindspore_palm.train.continuation import StartOptions
from mindspore_palm.train.run_folder import RunFolderState, check_run_folder, locked_run_folder, start_run_folder


@pytest.fixture
def settings(tmp_path):
    return Settings.model_validate({"train": {"output": str(tmp_path / "run")}})


@pytest.fixture
def make_checkpoint(device, tmp_path):
    """Writes a checkpoint of the run with its settings."""
    from mindspore import Parameter, Tensor

    from mindspore_palm.checkpoint.manager import CheckpointManager
    from mindspore_palm.parallel.votes import Votes

    def make(settings):
        weight = Parameter(Tensor(np.zeros((4, 3), np.float32)), name="weight")
        manager = CheckpointManager(tmp_path / "run" / "checkpoints", [weight], settings, b"", Votes(), lambda: None)
        manager.save(5, {})
        assert manager.finish()

    return make


def test_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOCK_TIMEOUT", 0.3)
    with (
        locked_run_folder(tmp_path / "run"),
        pytest.raises(UserError, match="another process is training in"),
        locked_run_folder(tmp_path / "run"),
    ):
        pass
    with locked_run_folder(tmp_path / "run"):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_an_empty_folder(settings, tmp_path):
    assert check_run_folder(settings, StartOptions()) is RunFolderState.EMPTY
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    assert check_run_folder(settings, StartOptions(skip_batches=(3, 4))) is RunFolderState.EMPTY
    with pytest.raises(UserError, match="--rewind-to 7: there is no checkpoint"):
        check_run_folder(settings, StartOptions(rewind_to=7))


def test_a_run_that_ended_before_its_first_checkpoint(settings, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.csv").write_text("step\n1\n")
    (run / "config.yaml").write_text(settings_to_yaml(settings))
    (run / "notes.txt").write_text("mine")
    assert check_run_folder(settings, StartOptions()) is RunFolderState.STARTED
    other = Settings.model_validate({"train": {"output": str(run), "seed": 4}})
    with pytest.raises(UserError, match=r"train\.seed was 0 and is 4 now"):  # somebody else's
        check_run_folder(other, StartOptions())
    assert check_run_folder(other, StartOptions(overwrite=True)) is RunFolderState.EMPTY
    write_rewinds(run, [Rewind("by hand", 0, 0, (8, 16), "--skip-batches 1:2")])
    start_run_folder(run, settings, RunFolderState.STARTED)
    assert not (run / "metrics.csv").exists() and read_rewinds(run) and (run / "notes.txt").exists()
    start_run_folder(run, other, RunFolderState.EMPTY)
    assert not read_rewinds(run) and "seed: 4" in (run / "config.yaml").read_text()


def test_a_model_without_checkpoints_is_not_touched(settings, tmp_path):
    (tmp_path / "run" / "final").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a run already, which left no checkpoint"):
        check_run_folder(settings, StartOptions())
    start_run_folder(tmp_path / "run", settings, RunFolderState.RESUMABLE)
    assert (tmp_path / "run" / "final").exists()


def write_foreign(run):
    """Writes files that people and their tools put into the folder of a run; path to content."""
    names = ["notes.txt", ".DS_Store", "Thumbs.db", "config.yaml~", ".config.yaml.swp", "final/notes.txt"]
    names += [
        "checkpoints/.DS_Store",
        "checkpoints/step_000010.zip",
        "checkpoints/step_000010 (copy)/rank_0.safetensors",
    ]
    names += ["checkpoints/.ipynb_checkpoints/a", "checkpoints/step_000005/notes.txt", "tensorboard/.DS_Store"]
    names += ["tensorboard/plugins/profile/a.pb", "tensorboard/.ipynb_checkpoints/b", "metrics.csv.bak", "final.zip"]
    for name in names:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"mine: {name}")
    return {run / name: f"mine: {name}" for name in names}


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else(settings, tmp_path):
    run = tmp_path / "run"
    foreign = write_foreign(run)
    ours = ["metrics.csv", "loss.png", "rewinds.json", "adapter.safetensors", "final/model.safetensors"]
    ours += ["final/tokenizer.model", "tensorboard/events.out.tfevents.1.host"]
    ours += [f"checkpoints/step_000005/{name}" for name in ("rank_0.safetensors", "manifest.json", "state.json")]
    ours += ["checkpoints/step_000004.damaged/manifest.json", "checkpoints/step_000003.tmp/rank_0.json"]
    for name in ours:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("ours")
    assert check_run_folder(settings, StartOptions(overwrite=True)) is RunFolderState.EMPTY
    start_run_folder(run, settings, RunFolderState.EMPTY)
    left = {path: path.read_text() for path in run.rglob("*") if path.is_file()}
    assert left.pop(run / "config.yaml") == settings_to_yaml(settings)
    assert left == foreign
    assert check_run_folder(settings, StartOptions()) is RunFolderState.EMPTY  # files of others are no run


def test_links_that_would_be_replaced_or_lead_nowhere_are_refused_first(settings, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "shared").mkdir()
    for name in ("metrics.csv", "final", "checkpoints", "config.yaml", "tensorboard", "loss.png"):
        (run / name).symlink_to(tmp_path / "nowhere")
        with pytest.raises(UserError, match=f"run/{name} is a link to .*nowhere.*remove the link"):
            check_run_folder(settings, StartOptions())
        (run / name).unlink()
    (run / "final").symlink_to(tmp_path / "shared")
    with pytest.raises(UserError, match="and a run replaces what is there; remove the link"):
        check_run_folder(settings, StartOptions(overwrite=True))
    (run / "final").unlink()
    for name in ("checkpoints", "final", "tensorboard"):
        (run / name).write_text("a file")
        with pytest.raises(UserError, match=f"run/{name} is a file, and a run keeps a folder there; move it away"):
            check_run_folder(settings, StartOptions())
        (run / name).unlink()
    (run / "metrics.csv").mkdir()
    with pytest.raises(UserError, match="is a folder, and a run keeps a file there; move it away"):
        check_run_folder(settings, StartOptions())


def test_nothing_is_deleted_through_a_link(settings, tmp_path):
    run, disk = tmp_path / "run", tmp_path / "disk"
    run.mkdir()
    (run / "checkpoints").symlink_to(disk)
    (disk / "step_000005").mkdir(parents=True)
    (disk / "step_000005" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"--overwrite: .*checkpoints is a link to .*disk, and nothing outside"):
        check_run_folder(settings, StartOptions(overwrite=True))
    start_run_folder(run, settings, RunFolderState.EMPTY)
    assert (disk / "step_000005" / "manifest.json").exists()
    (disk / "step_000005" / "manifest.json").unlink()
    (disk / "step_000005").rmdir()
    assert check_run_folder(settings, StartOptions(overwrite=True)) is RunFolderState.EMPTY  # then it is followed
    start_run_folder(run, settings, RunFolderState.EMPTY)
    assert (run / "checkpoints").is_symlink()


def test_an_output_that_is_a_link_to_another_disk(settings, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert check_run_folder(settings, StartOptions()) is RunFolderState.EMPTY
    (tmp_path / "disk").rmdir()
    with pytest.raises(UserError, match=r"train\.output = .*run: .*run is a link to .*disk, and nothing is there"):
        check_run_folder(settings, StartOptions())


def test_rows_of_another_run_are_set_aside_and_not_truncated(tmp_path, capsys):
    table = "step,loss,cross_entropy,learning_rate,gradient_norm,skipped,tokens,seconds,tokens_per_second,mfu,hfu\r\n"
    table += "".join(f"{step},{6 - step / 10},5,0.01,1,0,{64 * step},1,64,0,0\r\n" for step in range(1, 9))
    (tmp_path / "metrics.csv").write_text(table)
    module.set_foreign_metrics_aside(tmp_path, [(4, "5.6"), (5, "5.5")])
    module.set_foreign_metrics_aside(tmp_path, [(9, "5.1")])  # the last rows are missing, which is logged elsewhere
    assert (tmp_path / "metrics.csv").read_text() == table.replace("\r\n", "\n")
    module.set_foreign_metrics_aside(tmp_path, [(4, "5.6"), (5, "5.4")])
    assert (tmp_path / "metrics.csv.other").read_text() == table.replace("\r\n", "\n")
    assert "has other losses than this run: it is set aside as metrics.csv.other" in capsys.readouterr().out


def test_settings_that_somebody_edited_are_kept_and_not_read(make_checkpoint, settings, tmp_path, capsys):
    run = tmp_path / "run"
    make_checkpoint(settings)
    for content in (settings_to_yaml(settings), settings_to_yaml(settings).replace("steps: 1000", "steps: 2000")):
        (run / "config.yaml").write_text(content)
        start_run_folder(run, settings, RunFolderState.RESUMABLE)
        assert not (run / "config.yaml.other").exists()
    for number, content in enumerate((settings_to_yaml(settings).replace("seed: 0", "seed: 7"), "{", "")):
        (run / "config.yaml").write_text(content)
        start_run_folder(run, settings, RunFolderState.RESUMABLE)
        kept = run / ("config.yaml.other" if number == 0 else f"config.yaml.other.{number + 1}")
        assert kept.exists() == bool(content) and (not content or kept.read_text() == content)
    assert (run / "config.yaml").read_text() == settings_to_yaml(settings)
    assert "none are read from it; it is kept as config.yaml.other" in capsys.readouterr().out


def test_a_file_of_the_user_is_not_overwritten_by_the_probe(tmp_path):
    (tmp_path / "writable").write_text("mine")
    with locked_run_folder(tmp_path):
        pass
    assert (tmp_path / "writable").read_text() == "mine"

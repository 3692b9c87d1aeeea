"""CheckpointManager: a consistent snapshot, which checkpoints are kept, and a disk that is full."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from mindspore_palm.checkpoint import manager as module
from mindspore_palm.checkpoint.format import Checkpoint, folder_name, steps_in
from mindspore_palm.config import Settings


@pytest.fixture
def make(device, tmp_path):
    """Makes a manager of two tensors, and a function that sets them."""
    from mindspore import Parameter, Tensor

    from mindspore_palm.parallel.votes import Votes

    state = [Parameter(Tensor(np.zeros((4, 3), np.float32)), name="weight")]
    state += [Parameter(Tensor(np.zeros(1, np.int32)), name="global_step")]

    def set_to(number):
        for p in state:
            p.asnumpy()[...] = number  # in place, as a step does

    def make(**train):
        settings = Settings.model_validate({"train": train})
        manager = module.CheckpointManager(tmp_path / "checkpoints", state, settings, b"tokens", Votes(), lambda: None)
        manager.state = state
        return manager, set_to

    return make


def value(manager, step):
    return Checkpoint(manager.folder / folder_name(step)).tensors["weight"].read()


@pytest.mark.parametrize(
    ("train", "kept"), [({}, [10, 9, 8]), ({"keep_last": 1}, [10]), ({"keep_last": 2, "keep_every": 4}, [10, 9, 8, 4])]
)
def test_which_checkpoints_are_kept(train, kept, make):
    manager, set_to = make(**train)
    for step in range(1, 11):
        set_to(step)
        manager.save(step, {"step": step})
    assert manager.finish()
    assert steps_in(manager.folder) == kept
    for step in kept:
        assert (value(manager, step) == step).all()
        assert Checkpoint(manager.folder / folder_name(step)).state == {"step": step}


def test_a_snapshot_is_consistent(make, monkeypatch):
    """Weights that change while a checkpoint is being written do not change it."""
    go, write = threading.Event(), module.checkpoint.write_shards
    monkeypatch.setattr(module.checkpoint, "write_shards", lambda *a: (go.wait(10), write(*a)))
    manager, set_to = make()
    set_to(5)
    manager.save(5, {})
    set_to(6)
    assert manager._phase() == (False, False) and steps_in(manager.folder) == []
    go.set()
    assert manager.finish()
    assert (value(manager, 5) == 5).all()


def test_a_poll_is_one_vote_for_the_stop_request_and_the_checkpoint(make):
    manager, _ = make()
    votes, cast = manager.votes, []
    manager.votes = lambda *wishes: (cast.append(wishes), votes(*wishes))[1]
    assert (manager.poll(True), manager.poll()) == (1, 0)
    manager._written = manager._failed = True  # of an earlier checkpoint: none is pending
    assert manager.poll() == 0
    assert cast == [(True, False, False), (False, False, False), (False, False, False)]


def test_saving_in_the_foreground_waits(make):
    manager, _ = make(checkpoint_in_background=False)
    manager.save(3, {})
    assert steps_in(manager.folder) == [3]


def test_there_is_never_a_second_writer(make, monkeypatch):
    busy, most, write = [], [], module.checkpoint.write_shards

    def slow(*arguments):
        busy.append(1)
        most.append(len(busy))
        write(*arguments)
        busy.pop()

    monkeypatch.setattr(module.checkpoint, "write_shards", slow)
    manager, _ = make()
    for step in range(20):
        manager.save(step, {})
    manager.finish()
    assert len(most) == 20 and max(most) == 1


@pytest.mark.parametrize("where", ["write_shards", "publish"])
def test_a_full_disk_is_logged_and_the_last_checkpoint_stays(where, make, monkeypatch, capsys):
    manager, _ = make()
    manager.save(1, {})
    assert manager.finish()

    def fail(*_):
        raise OSError(28, "No space left on device", "the/file")

    with monkeypatch.context() as patch:
        patch.setattr(module.checkpoint, where, fail)
        manager.save(2, {})
        while manager._thread.is_alive():
            pass
        for _ in range(3):  # as after each step
            manager.poll()
            manager._thread.join()
        assert not manager.finish()
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "the checkpoint of step 2 could not be written: No space left on device (the/file)" in out
    assert "the last one is of step 1" in out
    assert [path.name for path in manager.folder.iterdir()] == ["step_000001"]
    manager.save(3, {})
    assert manager.finish() and steps_in(manager.folder) == [3, 1]


def test_incomplete_checkpoints_are_deleted(make):
    manager, _ = make()
    manager.save(1, {})
    manager.finish()
    (manager.folder / "step_000002.tmp").mkdir()
    (manager.folder / "step_000002.tmp" / "rank_0.safetensors").write_bytes(b"half")
    module.delete_incomplete(manager.folder)
    assert [path.name for path in manager.folder.iterdir()] == ["step_000001"]
    module.delete_incomplete(manager.folder / "nowhere")


def test_state_that_is_not_finite_is_not_saved(make, capsys):
    manager, set_to = make(keep_last=1)
    set_to(1)
    manager.save(1, {})
    for value_ in (np.nan, np.inf, -np.inf):
        manager.state[0].asnumpy()[2, 1] = value_
        manager.save(2, {})
        assert not manager.finish() and manager.state_not_finite
    assert steps_in(manager.folder) == [1] and (value(manager, 1) == 1).all()
    assert capsys.readouterr().out.count("step 2 could not be written: weight holds values that are not finite") == 3
    manager.state[0].asnumpy()[2, 1] = 3.0e38  # huge, and finite
    manager.save(3, {})
    assert manager.finish() and not manager.state_not_finite


def test_the_newest_sound_checkpoint_outlives_those_in_doubt(make):
    """A checkpoint is sound once a later step has found a finite loss with its weights."""
    manager, _ = make(keep_last=1)
    for step, sound, kept in ((5, 4, [5]), (10, 9, [10, 5]), (15, 9, [15, 5]), (20, 9, [20, 5]), (25, 24, [25, 20])):
        manager.save(step, {}, sound)
        assert manager.finish() and steps_in(manager.folder) == kept
    manager.prune(25, 25)
    assert steps_in(manager.folder) == [25]


def test_users_files_in_a_checkpoint_survive_its_deletion(make):
    manager, _ = make(keep_last=1)
    manager.save(1, {})
    manager.finish()
    note = manager.folder / "step_000001" / "notes.txt"
    note.write_text("mine")
    (manager.folder / "step_000001" / ".ipynb_checkpoints").mkdir()
    manager.save(2, {})
    manager.finish()
    assert steps_in(manager.folder) == [2] and note.read_text() == "mine"
    assert {path.name for path in note.parent.iterdir()} == {"notes.txt", ".ipynb_checkpoints"}
    module.delete_incomplete(manager.folder)
    manager.save(1, {})  # as after going back: users' own files are in its folder
    manager.finish()
    assert Checkpoint(note.parent).step == 1 and note.read_text() == "mine"


def test_folders_with_similar_names_are_left_alone(make, tmp_path):
    manager, _ = make(keep_last=1)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "rank_0.safetensors").write_text("of another disk")
    names = [
        "step_000010 (copy)",
        "step_000001.bak",
        "step_000001_tmp",
        "notes.tmp",
        ".nfs00001",
        "step_" + 5 * "\u0660" + "\u0661",
    ]
    for name in names:
        (manager.folder / name).mkdir(parents=True)
        (manager.folder / name / "rank_0.safetensors").write_text("mine")
    for name in ("step_000010.zip", ".DS_Store", "Thumbs.db", "step_000003"):
        (manager.folder / name).write_text("mine")
        names.append(name)
    (manager.folder / "step_000002.tmp").symlink_to(tmp_path / "elsewhere")
    (manager.folder / "step_000004").symlink_to(tmp_path / "nowhere")
    module.delete_incomplete(manager.folder)
    for step in (1, 5, 6):
        manager.save(step, {})
    assert manager.finish() and steps_in(manager.folder) == [6]
    assert {path.name for path in manager.folder.iterdir()} == {*names, "step_000002.tmp", "step_000004", "step_000006"}
    assert (tmp_path / "elsewhere" / "rank_0.safetensors").read_text() == "of another disk"


def test_deleting_a_linked_checkpoint_deletes_only_the_link(make, tmp_path):
    manager, _ = make(keep_last=1)
    manager.save(1, {})
    manager.finish()
    (manager.folder / "step_000001").rename(tmp_path / "other_disk")
    (manager.folder / "step_000001").symlink_to(tmp_path / "other_disk")
    assert steps_in(manager.folder) == [1]
    manager.save(2, {})
    assert manager.finish() and steps_in(manager.folder) == [2]
    assert not (manager.folder / "step_000001").is_symlink() and Checkpoint(tmp_path / "other_disk").step == 1


@pytest.mark.parametrize("ending", [".gone.tmp", ".tmp", ".damaged.gone.tmp"])
def test_an_interrupted_deletion_is_completed(ending, make):
    manager, _ = make()
    half = manager.folder / f"step_000007{ending}"
    half.mkdir(parents=True)
    (half / "rank_0.safetensors").write_bytes(b"half")
    (half / "state.json.4711.tmp").write_bytes(b"half")
    module.delete_incomplete(manager.folder)
    assert list(manager.folder.iterdir()) == []

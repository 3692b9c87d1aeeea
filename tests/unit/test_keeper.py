"""The writer of checkpoints: one consistent snapshot, which are kept, and what happens when the disk refuses."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from mindspore_palm.config import Settings
from mindspore_palm.train import keeper as module
from mindspore_palm.train.checkpoint import Checkpoint, folder_name, steps_in


@pytest.fixture
def make(device, tmp_path):
    """A keeper of two tensors, and a way to change them."""
    from mindspore import Parameter, Tensor

    from mindspore_palm.parallel.agree import Agreement

    state = [Parameter(Tensor(np.zeros((4, 3), np.float32)), name="weight")]
    state += [Parameter(Tensor(np.zeros(1, np.int32)), name="global_step")]

    def set_to(number):
        for p in state:
            p.asnumpy()[...] = number  # where it lies, as a step does

    def make(**train):
        settings = Settings.model_validate({"train": train})
        return module.Keeper(tmp_path / "checkpoints", state, settings, b"tokens", Agreement(), lambda: None), set_to

    return make


def value(keeper, step):
    return Checkpoint(keeper.folder / folder_name(step)).tensors["weight"].read()


@pytest.mark.parametrize(
    ("train", "kept"), [({}, [10, 9, 8]), ({"keep_last": 1}, [10]), ({"keep_last": 2, "keep_every": 4}, [10, 9, 8, 4])]
)
def test_which_are_kept(train, kept, make):
    keeper, set_to = make(**train)
    for step in range(1, 11):
        set_to(step)
        keeper.save(step, {"step": step})
    assert keeper.finish()
    assert steps_in(keeper.folder) == kept
    for step in kept:
        assert (value(keeper, step) == step).all()
        assert Checkpoint(keeper.folder / folder_name(step)).state == {"step": step}


def test_a_snapshot_is_of_one_moment(make, monkeypatch):
    """Weights that change while it is being written do not change it."""
    go, write = threading.Event(), module.checkpoint.write_slices
    monkeypatch.setattr(module.checkpoint, "write_slices", lambda *a: (go.wait(10), write(*a)))
    keeper, set_to = make()
    set_to(5)
    keeper.save(5, {})
    set_to(6)
    assert keeper.tell() == (False, False) and steps_in(keeper.folder) == []
    go.set()
    assert keeper.finish()
    assert (value(keeper, 5) == 5).all()


def test_at_once_is_at_once(make):
    keeper, _ = make(checkpoint_in_background=False)
    keeper.save(3, {})
    assert steps_in(keeper.folder) == [3]


def test_there_is_never_a_second_writer(make, monkeypatch):
    busy, most, write = [], [], module.checkpoint.write_slices

    def slow(*arguments):
        busy.append(1)
        most.append(len(busy))
        write(*arguments)
        busy.pop()

    monkeypatch.setattr(module.checkpoint, "write_slices", slow)
    keeper, _ = make()
    for step in range(20):
        keeper.save(step, {})
    keeper.finish()
    assert len(most) == 20 and max(most) == 1


@pytest.mark.parametrize("where", ["write_slices", "publish"])
def test_a_full_disk_is_told_and_the_last_one_stays(where, make, monkeypatch, capsys):
    keeper, _ = make()
    keeper.save(1, {})
    assert keeper.finish()

    def fail(*_):
        raise OSError(28, "No space left on device", "the/file")

    with monkeypatch.context() as patch:
        patch.setattr(module.checkpoint, where, fail)
        keeper.save(2, {})
        while keeper._thread.is_alive():
            pass
        for _ in range(3):  # as after steps
            keeper.hear(*keeper.tell())
            keeper._thread.join()
            keeper.look()
        assert not keeper.finish()
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "the checkpoint of step 2 could not be written: No space left on device (the/file)" in said
    assert "the last one is of step 1" in said
    assert [path.name for path in keeper.folder.iterdir()] == ["step_000001"]
    keeper.save(3, {})
    assert keeper.finish() and steps_in(keeper.folder) == [3, 1]


def test_what_was_never_completed_is_cleared(make):
    keeper, _ = make()
    keeper.save(1, {})
    keeper.finish()
    (keeper.folder / "step_000002.tmp").mkdir()
    (keeper.folder / "step_000002.tmp" / "rank_0.safetensors").write_bytes(b"half")
    module.clear(keeper.folder)
    assert [path.name for path in keeper.folder.iterdir()] == ["step_000001"]
    module.clear(keeper.folder / "nowhere")

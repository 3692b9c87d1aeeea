"""The timeline of a run, read from its folder before anything is computed."""

from __future__ import annotations

import numpy as np
import pytest

from mindspore_palm.checkpoint.progress import Progress, Rewind, write_rewinds
from mindspore_palm.checkpoint.timeline import (
    all_rewinds,
    current_checkpoint,
    progress_of,
    resume_step,
    text_differences,
    with_remaining_ramp,
)
from mindspore_palm.config import Settings
from mindspore_palm.data.order import Segment, sizes_from
from mindspore_palm.errors import UserError
from mindspore_palm.train.continuation import StartOptions

RAMP = {"batch_size": [[0, 2], [5, 4], [20, 8]]}


@pytest.fixture
def make(device, tmp_path):
    """Makes a checkpoint of a step in the run of ``tmp_path``, with progress."""
    from mindspore import Parameter, Tensor

    from mindspore_palm.checkpoint.manager import CheckpointManager
    from mindspore_palm.parallel.votes import Votes

    weight = Parameter(Tensor(np.zeros((4, 3), np.float32)), name="weight")
    settings = Settings.model_validate({"train": {"output": str(tmp_path), **RAMP}})

    def make(step, progress=None):
        progress = progress or Progress(step=step)
        manager = CheckpointManager(tmp_path / "checkpoints", [weight], settings, b"", Votes(), lambda: None)
        manager.save(step, {"progress": progress.to_json()})
        assert manager.finish()

    make.settings = settings
    return make


def test_remaining_batch_sizes():
    ramp = [(0, 2), (5, 4), (20, 8)]
    assert [sizes_from(ramp, step) for step in (0, 4, 5, 19, 20, 99)] == [
        [2, 4, 8], [2, 4, 8], [4, 8], [4, 8], [8], [8]
    ]  # fmt: skip
    settings = Settings.model_validate({"train": RAMP})
    assert with_remaining_ramp(settings, 7).train.batch_ramp() == [(0, 4), (20, 8)]
    assert with_remaining_ramp(settings, 3) is settings


def test_past_batch_sizes_do_not_rule_out_a_larger_mesh(make, tmp_path):
    from mindspore_palm.train.loop import check_settings

    wide = make.settings.model_copy(update={"parallel": make.settings.parallel.model_copy(update={"data": 4})})
    with pytest.raises(UserError, match=r"train\.batch_size"):
        check_settings(wide, "CPU")
    make(5)
    assert check_settings(wide, "CPU").devices == 4
    make(20)
    eight = make.settings.model_copy(update={"parallel": make.settings.parallel.model_copy(update={"data": 8})})
    assert check_settings(eight, "CPU").devices == 8
    for start in (StartOptions(rewind_to=0), StartOptions(rewind_to=4), StartOptions(overwrite=True)):
        with pytest.raises(UserError, match=r"train\.batch_size"):
            check_settings(eight, "CPU", start)
    with pytest.raises(UserError, match=r"train\.batch_size"):
        check_settings(eight, "CPU", StartOptions(rewind_to=5))  # 4 sequences are too few for 8 devices


def test_segments_of_an_old_checkpoint_come_from_its_settings(make, tmp_path):
    make(7, Progress(step=7, not_finite=2))
    progress = progress_of(current_checkpoint(tmp_path))
    assert progress.segments == (Segment(0, ((0, 2), (5, 4), (20, 8)), 256, 0),)
    values = progress.to_json()
    del values["sound"], values["segments"], values["base"]
    assert (Progress.from_json(values).sound, Progress.from_json(values).segments) == (4, ())


def test_decisions_are_compared_by_content(make, tmp_path):
    """Not by their number: a checkpoint of another run may have as many."""
    ours, theirs = Rewind("a", 9, 5, (0, 0)), Rewind("b", 8, 6, (0, 0))
    make(5)
    make(9, Progress(step=9, rewinds=[theirs]))
    write_rewinds(tmp_path, [ours])
    with pytest.raises(UserError, match=r"knows decisions to go back that .*rewinds\.json does not hold"):
        current_checkpoint(tmp_path)
    (tmp_path / "rewinds.json").unlink()  # lost: they are in the checkpoint
    assert all_rewinds(tmp_path) == [theirs]
    assert current_checkpoint(tmp_path, [theirs]).step == 9
    assert current_checkpoint(tmp_path, [theirs, Rewind("c", 9, 6, (0, 0))]).step == 5


def test_resume_step(make, tmp_path):
    assert resume_step(tmp_path, False, None) == 0
    make(5)
    make(9)
    assert [resume_step(tmp_path, *asked) for asked in ((False, None), (True, None), (False, 8), (False, 2))] == [
        9,
        0,
        5,
        0,
    ]
    (tmp_path / "checkpoints" / "step_000009" / "state.json").write_text("{}")
    assert resume_step(tmp_path, False, None) == 5


def test_fingerprints_are_compared_by_the_entries_that_both_have():
    assert not text_differences({}, {"a": 1}) and not text_differences({"a": 1, "b": 2}, {"a": 1, "c": 3})
    assert text_differences({"a": 1}, {"a": 2, "c": 3}) == {"a": (1, 2)}
    assert text_differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == {"a.c": (2, 3)}


def test_another_text_begins_with_its_first_epoch():
    """Whatever the old text was: none of the new one has been trained on."""
    from mindspore_palm.checkpoint.timeline import segments_from

    settings = Settings.model_validate({"train": RAMP})
    old = (Segment(0, ((0, 2), (5, 4), (20, 8)), 256, 0), Segment(9, ((0, 4),), 256, 0, position=26))
    progress = Progress(step=15, segments=old)
    *before, after = segments_from(15, progress, settings, None, ({"sha": 1}, {"sha": 2}))
    assert tuple(before) == old and (after.step, after.position, after.rest_of) == (15, 0, None) and after.text
    other = segments_from(15, progress, settings, None, ({"sha": 1}, {"sha": 3}))[-1]
    assert other.text != after.text
    # as long as no step has used the segment, it is decided again
    assert segments_from(9, progress, settings, None, ({"sha": 1}, {"sha": 2}))[:1] == old[:1]

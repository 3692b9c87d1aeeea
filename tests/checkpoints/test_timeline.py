"""The timeline of a run: its text after a change of settings, its finite checkpoints, its newest model."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import numpy as np
import pytest
from checkpoints.command import checkpoints_of, rows_of, same_bits
from checkpoints.in_process import state_of, trainer, write_text
from safetensors.numpy import load_file


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("timeline")
    write_text(home)
    return home


@pytest.fixture
def train(home, device, monkeypatch, capsys):
    return trainer(home, monkeypatch, capsys)


@pytest.fixture
def begun(home, train):
    """A copy of a run of 10 steps of 4 sequences, for a test that changes it."""
    if not (home / "begun").exists():
        code, _, err = train("begun", "train.steps=10")
        assert code == 0, err

    def copy(name):
        shutil.copytree(home / "begun", home / name)
        return home / name

    return copy


@pytest.mark.parametrize(("size", "end"), [(8, 80), (2, 50)])
def test_a_new_batch_size_resumes_at_the_same_position_in_the_text(size, end, begun, train):
    run = begun(f"size_{size}")
    change = ["train.steps=15", f"train.batch_size={size}"]
    code, out, err = train(run, *change, "--accept", "train.batch_size")
    assert code == 0, err
    assert "the batches changed at step 10: they continue with sequence 40 of the order" in out
    assert state_of(run, 10)["data"]["position"] == 40 and state_of(run, 15)["data"]["position"] == end
    code, out, err = train(run, *change)  # it is the run's setting from then on
    assert code == 0 and "is finished" in out


def test_a_new_sequence_length_trains_on_the_rest_of_the_epoch(begun, train):
    run = begun("length")
    code, out, err = train(run, "train.steps=15", "data.seq_len=32", "--accept", "data.seq_len")
    assert code == 0, err
    assert re.search(r"data\.seq_len changed at step 10: the text of epoch 1 that no step has taken comes first", out)
    segment = state_of(run, 15)["progress"]["segments"][-1]
    assert (segment["step"], segment["rest_of"], segment["seq_len"]) == (10, 40, 32)
    # going back to before the change, with the settings from before, undoes it
    code, _, err = train(run, "train.steps=15", "--rewind-to", "5", "--accept", "data.seq_len")
    assert code == 0, err
    code, _, err = train("straight_15", "train.steps=15")
    assert code == 0, err
    assert not same_bits(run, run.parent / "straight_15")


def test_batches_are_numbered_as_the_run_took_them(begun, train):
    """Batch 7 of 4 sequences is sequences 28 to 32, although batches now have 8."""
    run = begun("numbered")
    asked = ["--rewind-to", "5", "--skip-batches", "7:9"]
    code, _, err = train(run, "train.steps=12", "train.batch_size=8", "--accept", "train.batch_size", *asked)
    assert code == 0, err
    (rewind,) = json.loads((run / "rewinds.json").read_text())
    assert rewind["to"] == 5 and rewind["skip"] == [28, 36]
    assert state_of(run, 10)["data"]["position"] == 20 + 5 * 8 + 8


WILD = ["train.steps=60", "optimizer.learning_rate=1e20", "optimizer.schedule=constant", "train.keep_last=1"]
ACCEPT = ["--accept", "optimizer.learning_rate", "--accept", "optimizer.schedule"]


def test_weights_that_are_not_finite_are_not_saved_and_the_advice_works(begun, train):
    run = begun("wild")
    healthy = load_file(run / "checkpoints" / "step_000010" / "rank_0.safetensors")
    model = (run / "final" / "model.safetensors").read_bytes()
    code, out, err = train(run, *WILD, *ACCEPT)
    assert code == 2 and "was not finite in the last 25 steps" in err
    assert "step 15: no checkpoint, as the loss or a gradient is not finite" in out
    assert checkpoints_of(run)[-1] == 10
    for name, values in load_file(run / "checkpoints" / "step_000010" / "rank_0.safetensors").items():
        np.testing.assert_array_equal(values, healthy[name])
    assert (run / "final" / "model.safetensors").read_bytes() == model
    advice = shlex.split(re.search(r"the same command with (.*) goes back to step 10", err).group(1))
    code, out, err = train(run, *WILD[:1], *WILD[2:], *ACCEPT, *WILD[1:2], *advice)
    assert code == 0, err
    losses = [float(row["loss"]) for row in rows_of(run)]
    assert len(losses) == 60 and np.isfinite(losses).all()
    assert np.isfinite(load_file(run / "final" / "model.safetensors")["embedding"]).all()


def test_a_run_that_is_lost_from_its_start_is_started_over_as_advised(train, home):
    arguments = ["train.steps=8", *WILD[1:]]
    code, _, err = train("lost", *arguments)
    assert code == 2 and "the weights after step 8 are not finite" in err
    assert not (home / "lost" / "final").exists() and checkpoints_of(home / "lost") == []
    advice = shlex.split(re.search(r"the same command with (.*) starts over", err).group(1))
    code, _, err = train("lost", *arguments, *advice)
    assert code == 0, err
    assert np.isfinite(load_file(home / "lost" / "final" / "model.safetensors")["embedding"]).all()


def test_a_model_of_another_past_is_not_the_runs_model(begun, train, capsys):
    """The run was extended, or went back and trained again to the same step, and ``final`` is still the old model."""
    from mindspore_palm import load

    run = begun("extended")
    code, _, err = train(run, "train.steps=15")
    assert code == 0, err
    code, _, err = train(run, "train.steps=15", "--rewind-to", "10", "--skip-batches", "11:12")
    assert code == 0, err
    newest = load_file(run / "final" / "model.safetensors")["embedding"]
    for old in ("begun", "straight_15"):  # of step 10; and of step 15, as it was without the rewind
        if not (run.parent / old).exists():
            assert train(old, "train.steps=15")[0] == 0
        shutil.copytree(run.parent / old / "final", run / "final", dirs_exist_ok=True)
        assert not np.array_equal(load_file(run / "final" / "model.safetensors")["embedding"], newest)
        capsys.readouterr()
        np.testing.assert_array_equal(load(run).embedding.asnumpy(), newest)
        captured = capsys.readouterr()
        assert "step_000015; name" in captured.err and captured.out == ""
    code, out, err = train(run, "train.steps=15")  # so the run is not finished, and the model is exported again
    assert code == 0 and "is finished" not in out, err
    np.testing.assert_array_equal(load_file(run / "final" / "model.safetensors")["embedding"], newest)
    assert "is finished" in train(run, "train.steps=15")[1]

"""A planted spike (consecutive poisoned batches) is cured; training ends near a run that never saw them."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from checkpoints.command import checkpoints_of, finish, kill, rows_of, run, same_bits, start, wait_for_rows, write_text

POISONED = Path(__file__).with_name("poisoned.py")
STEPS = 240
OPTIONS = [f"train.steps={STEPS}", "train.eval_every=80", "train.checkpoint_every=20", "train.keep_last=4"]
PALM = ["train.spikes=palm", "train.spike_window=16", "train.spike_look_back=20", "train.spike_skip=30"]
PALM += ["train.spike_skip_most=60"]
ENVIRONMENT = {**os.environ, "POISON": "150:156"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("cure"))


@pytest.fixture(scope="module")
def cured(home):
    """The folder of the poisoned run that cures itself, and its output."""
    return home / "cured", run(home, "cured", *OPTIONS, *PALM, script=POISONED, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def clean(home):
    run(home, "clean", *OPTIONS)
    return home / "clean"


def test_the_spike_is_cured(cured, clean):
    folder, out = cured
    (rewind,) = json.loads((folder / "rewinds.json").read_text())
    assert rewind["at"] == 153 and rewind["to"] == 120  # three outliers, from batch 150 on, and 20 steps before them
    assert rewind["skip"] == [8 * 120, 8 * (153 + 20)]
    assert "going back to step 120 and skipping 53 batches (try 1 of 3)" in out
    assert "in steps 151 to 153" in out and "decisions to go back or to skip batches: 1, in rewinds.json" in out


def test_every_later_checkpoint_holds_the_decision(cured):
    """And so the batches that are skipped."""
    folder, _ = cured
    (rewind,) = json.loads((folder / "rewinds.json").read_text())
    later = [step for step in checkpoints_of(folder) if step > rewind["to"]]
    assert len(later) >= 3
    for step in later:
        state = json.loads((folder / "checkpoints" / f"step_{step:06d}" / "state.json").read_text())
        (stored,) = state["progress"]["rewinds"]
        assert (stored["at"], stored["to"], stored["skip"]) == (rewind["at"], rewind["to"], rewind["skip"])
        assert state["data"]["skipped"] == [rewind["skip"]]


def test_training_ends_near_the_clean_run(cured, clean):
    ours, theirs = rows_of(cured[0]), rows_of(clean)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [str(n + 1) for n in range(STEPS)]
    assert ours[:120] == theirs[:120]
    assert max(float(row["loss"]) for row in ours[120:]) < max(float(row["loss"]) for row in ours[:20])
    assert float(ours[-1]["validation_loss"]) == pytest.approx(float(theirs[-1]["validation_loss"]), abs=0.1)


@pytest.mark.slow
def test_the_poison_is_real(home):
    """Without the cure, the run trains on the poisoned batches."""
    run(home, "ill", *OPTIONS[1:], "train.steps=156", script=POISONED, env=ENVIRONMENT)
    losses = [float(row["loss"]) for row in rows_of(home / "ill")]
    assert min(losses[150:156]) > max(losses[120:150]) + 1


@pytest.mark.slow
def test_killed_after_the_decision_the_run_resumes_the_cure(home, cured):
    """From the moment it is written, whatever checkpoints still exist."""
    process = start(home, "killed", *OPTIONS, *PALM, script=POISONED, env=ENVIRONMENT)
    while not (home / "killed" / "rewinds.json").exists():
        assert process.poll() is None
        time.sleep(0.001)
    kill(process)
    assert checkpoints_of(home / "killed")[-1] == 140  # after the step that the decision goes back to
    out = run(home, "killed", *OPTIONS, *PALM, script=POISONED, env=ENVIRONMENT)
    assert "resuming from step 120\n" in out
    assert not same_bits(home / "killed", cured[0])


@pytest.mark.slow
def test_two_workers_decide_the_same(home, cured):
    run(home, "two", *OPTIONS, *PALM, "parallel.data=2", script=POISONED, env=ENVIRONMENT)
    ours, theirs = (json.loads((folder / "rewinds.json").read_text()) for folder in (home / "two", cured[0]))
    assert [rewind["skip"] for rewind in ours] == [rewind["skip"] for rewind in theirs]
    for a, b in zip(rows_of(home / "two"), rows_of(cured[0]), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-4)


@pytest.mark.slow
def test_a_spike_that_no_skipping_cures_ends_the_run(home):
    environment = {**os.environ, "POISON": "150:100000"}
    process = start(home, "hopeless", *OPTIONS, *PALM, script=POISONED, env=environment)
    code, out, err = finish(process)
    assert code == 2 and "after going back 3 times for it" in err and "Traceback" not in err
    assert out.count("going back to step") == 3


@pytest.mark.slow
def test_by_hand(home, clean):
    """Going back and skipping batches, once, however often the command asks for it."""
    shutil.copytree(clean, home / "hand")
    asked = [*OPTIONS, "--rewind-to", "199", "--skip-batches", "180:190"]
    process = start(home, "hand", *asked)
    wait_for_rows(process, home / "hand", 1, 180)
    kill(process)
    out = run(home, "hand", *asked)
    assert "was done before; resuming" in out
    (rewind,) = json.loads((home / "hand" / "rewinds.json").read_text())
    assert (rewind["at"], rewind["to"], rewind["skip"]) == (STEPS, 180, [8 * 180, 8 * 190])
    ours, theirs = rows_of(home / "hand"), rows_of(clean)
    assert len(ours) == STEPS and ours[:180] == theirs[:180] and ours[180] != theirs[180]

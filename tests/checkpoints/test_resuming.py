"""The same command again, after any failure, resumes exactly, or prints why it does not."""

from __future__ import annotations

import os
import signal

import pytest
from checkpoints.command import (
    checkpoints_of,
    family,
    finish,
    kill,
    rows_of,
    run,
    same_bits,
    start,
    wait_for_rows,
    workers,
    write_text,
)

EVERY = ["train.eval_every=5", "train.eval_sequences=16", "train.checkpoint_every=4"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("resuming"))


@pytest.fixture(scope="module")
def straight(home):
    """Eighteen uninterrupted steps."""
    run(home, "straight", "train.steps=18", *EVERY)
    return home / "straight"


@pytest.mark.slow
def test_killed_before_the_first_checkpoint(home, straight):
    process = start(home, "early", "train.steps=1000000", "train.checkpoint_every=1000000")
    wait_for_rows(process, home / "early", 2)
    kill(process)
    out = run(home, "early", "train.steps=18", *EVERY)
    assert "ended before its first checkpoint; beginning anew" in out
    assert not same_bits(home / "early", straight)


def test_damage_is_named_and_the_previous_checkpoint_used(home, straight):
    """Even if the run was finished, and its last two checkpoints are damaged."""
    run(home, "damaged", "train.steps=12", *EVERY)
    checkpoints = home / "damaged" / "checkpoints"
    assert checkpoints_of(home / "damaged") == [4, 8, 12]
    for step, name in ((12, "rank_0.safetensors"), (8, "state.json")):
        file = checkpoints / f"step_{step:06d}" / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    out = run(home, "damaged", "train.steps=18", *EVERY)
    for step, name in ((12, "rank_0.safetensors"), (8, "state.json")):
        assert f"step_{step:06d}/{name} was altered" in out
        assert f"step_{step:06d} is set aside as step_{step:06d}.damaged, going back to the one before" in out
    assert "going on from step 4\n" in out
    ours, theirs = rows_of(home / "damaged"), rows_of(straight)
    assert ours == theirs
    for step in (4, 16):
        (checkpoints / f"step_{step:06d}" / "manifest.json").unlink(missing_ok=True)
    (checkpoints / "step_000018" / "config.yaml").write_text("")
    for path in checkpoints.glob("step_*[0-9]"):
        (path / "manifest.json").unlink(missing_ok=True)
    code, _, err = finish(start(home, "damaged", "train.steps=20", *EVERY))
    assert code == 2 and "no checkpoint in" in err and "--overwrite" in err and "Traceback" not in err


@pytest.mark.slow
def test_a_change_that_is_accepted_by_name(home, straight):
    run(home, "changed", "train.steps=8", *EVERY)
    code, _, err = finish(start(home, "changed", "train.steps=18", *EVERY, "train.seed=3"))
    assert code == 2 and "train.seed was 0 and is 3 now" in err
    run(home, "changed", "train.steps=18", *EVERY, "train.seed=3", "--accept", "train.seed")
    ours, theirs = rows_of(home / "changed"), rows_of(straight)
    assert len(ours) == 18 and ours[:7] == theirs[:7] and ours[9] != theirs[9]  # other batches from then on
    run(home, "changed", "train.steps=19", *EVERY, "train.seed=3")  # and it is now the run's setting


@pytest.mark.slow
def test_two_runs_in_one_folder(home, straight):
    first = start(home, "shared", "train.steps=1000000", "train.eval_every=0")
    wait_for_rows(first, home / "shared")
    code, _, err = finish(start(home, "shared", "train.steps=1000000", "train.eval_every=0"))
    assert first.poll() is None
    kill(first)
    assert code == 2 and "error: another process is training in" in err


def test_nothing_is_finite_from_the_first_step(home, straight):
    wild = ["optimizer.name=adamw", "optimizer.schedule=constant", "optimizer.learning_rate=1e30", "train.z_loss=1e30"]
    code, out, err = finish(start(home, "wild", "train.steps=100", "train.eval_every=0", *wild))
    assert code == 2 and "Traceback" not in err
    assert "was not finite in the last 25 steps" in err and "lower optimizer.learning_rate" in err
    assert out.count("; skipped") == 25


def test_a_process_that_dies_is_restarted(home, straight):
    process = start(home, "again", "train.steps=18", *EVERY, "--max-restarts", "1", "--overwrite")
    wait_for_rows(process, home / "again", 5)
    child = family(process)[-1]  # the one that trains; the two others wait for it
    child.kill()
    code, out, err = finish(process)
    assert code == 0, err
    assert f"process {child.pid} was ended by SIGKILL; starting again from the last checkpoint (1 of 1)" in out
    assert not same_bits(home / "again", straight)


@pytest.mark.slow
def test_workers_that_die_or_hang(home):
    two = ["train.steps=30", *EVERY, "parallel.data=2"]
    run(home, "two", *two)
    process = start(home, "dies", *two, "--max-restarts", "1")
    wait_for_rows(process, home / "dies", 5)
    workers(process)["1"].send_signal(signal.SIGKILL)
    code, out, err = finish(process)
    assert code == 0, err
    assert "worker 1 (process " in out and "was ended by SIGKILL" in out and "(1 of 1)" in out
    assert not same_bits(home / "dies", home / "two")
    environment = {**os.environ, "MINDSPORE_PALM_HOST_PATIENCE": "5"}
    process = start(home, "hangs", *two[1:], "train.steps=1000000", env=environment)
    wait_for_rows(process, home / "hangs", 5)
    hanging = workers(process)["1"]
    hanging.suspend()
    code, _, err = finish(process, 60)
    assert code == 2 and f"worker 1 (pid {hanging.pid}) has not come for 5 s" in err and "Traceback" not in err
    run(home, "hangs", *two)
    assert not same_bits(home / "hangs", home / "two")

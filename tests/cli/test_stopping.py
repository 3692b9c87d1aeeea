"""Runs that are stopped, and runs whose records cannot be written: commands as a user types them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from checkpoints.command import checkpoints_of, family, finish, kill, lines_of, same_bits

ROOT = Path(__file__).resolve().parents[2]
SIZES = ["model.layers=1", "model.d_model=16", "model.heads=2", "model.head_dim=8", "model.d_ff=32"]
SIZES += ["model.vocab_size=300", "data.seq_len=16", "train.batch_size=4", "train.peak_tflops=1", "train.device=CPU"]
SIZES += ["train.steps=20", "train.checkpoint_every=5", "train.eval_every=7", "train.eval_sequences=8"]
FOREVER = ["train.steps=1000000", "train.checkpoint_every=0", "train.eval_every=0"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("stopping")
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(300)]
    (home / "text.txt").write_text("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(600)))
    return home


def words_of(home, output, *more):
    paths = [f"data.path={home / 'text.txt'}", f"data.prepared={home / 'prepared'}", f"train.output={home / output}"]
    return [sys.executable, str(ROOT / "run" / "train.py"), *SIZES, *paths, *more]


def start(home, output, *more, **options):
    pipe = subprocess.PIPE
    streams = {"stdout": pipe, "stderr": pipe, "text": True, "start_new_session": True}
    return subprocess.Popen(words_of(home, output, *more), cwd=ROOT, **{**streams, **options})


def wait_for(process, folder, rows=1, limit=200):
    end = time.monotonic() + limit
    while len(lines_of(folder)) <= rows:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no rows in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def straight(home):
    """An uninterrupted run."""
    code, out, err = finish(start(home, "straight"))
    assert code == 0, err + out
    return home / "straight"


def test_a_log_without_a_terminal_gets_lines_and_no_bar(home):
    log = home / "log"
    with log.open("wb") as file:
        process = start(home, "logged", stdout=file, stderr=file)
        assert finish(process)[0] == 0
    text = log.read_bytes()
    assert b"\r" not in text and b"step 1 of 20: loss " in text


@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], id="one"),
        pytest.param(["--max-restarts", "1"], id="restarts"),
        pytest.param(["parallel.data=2"], id="workers", marks=pytest.mark.slow),
    ],
)
def test_head_after_a_run_does_not_end_it(more, home, straight):
    output = f"head-{'-'.join(more)}"
    line = f"{' '.join(words_of(home, output, *more))} 2>&1 | head -2; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout
    assert (home / output / "final" / "model.safetensors").exists()
    assert len(done.stdout.splitlines()) == 2
    if "parallel.data=2" not in more:  # sums in another order
        assert not same_bits(home / output, straight)


def test_the_backend_of_a_notebook_and_a_full_log_end_nothing(home, straight):
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    line = f"{' '.join(words_of(home, 'notebook'))} > /dev/full 2>&1"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, timeout=240)
    assert done.returncode == 0
    assert not same_bits(home / "notebook", straight) and (home / "notebook" / "loss.png").exists()


def test_rows_that_could_not_be_written_are_written_later(home, straight):
    """While the run trains, metrics.csv is replaced by a folder for a while."""
    process = start(home, "rows")
    try:
        wait_for(process, home / "rows", 2)
        (home / "rows" / "metrics.csv").unlink()
        (home / "rows" / "metrics.csv").mkdir()
        time.sleep(0.1)
        (home / "rows" / "metrics.csv").rmdir()
        code, out, err = finish(process)
    finally:
        kill(process)
    assert code == 0, err + out
    assert not same_bits(home / "rows", straight)


@pytest.mark.slow
def test_an_evaluation_is_interrupted_at_once_and_repeated(home):
    """Each evaluation scores all held-out text. It stops between two batches, and the row gets its loss later."""
    more = ["train.steps=9", "train.eval_every=4", "train.checkpoint_every=0"]
    long = [*more, "data.validation_fraction=0.5", "train.eval_sequences=2000000", "train.micro_batch=1"]
    code, out, err = finish(start(home, "evaluated", *long))
    assert code == 0, err
    process = start(home, "left", *long)
    try:
        wait_for(process, home / "left", 3)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - sent < 20
    finally:
        kill(process)
    assert process.returncode == 130, err
    assert "stopped after step 4; the same command resumes from there" in err
    assert lines_of(home / "left")[4].endswith(",,")  # no held-out loss yet
    code, out, err = finish(start(home, "left", *long))
    assert code == 0, err
    assert "resuming from step 4\n" in out
    assert not same_bits(home / "left", home / "evaluated")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_workers_that_are_still_starting_stop_as_well(number, home):
    process = start(home, "starting", *FOREVER, "parallel.data=2", "--max-restarts", "2")
    try:
        end = time.monotonic() + 120
        while len(family(process)) < 5 and time.monotonic() < end:  # with the supervisor, launcher, msrun, scheduler
            time.sleep(0.02)
        members = family(process)
        process.send_signal(number)
        sent = time.monotonic()
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - sent < 20
    finally:
        kill(process)
    assert process.returncode == 130, err
    assert "starting again" not in out and err.startswith("stopped")
    assert not psutil.wait_procs(members, timeout=5)[1]


def test_after_overwrite_another_command_resumes(home):
    """A second --overwrite would delete the run."""
    process = start(home, "again", *FOREVER, "--overwrite")
    try:
        wait_for(process, home / "again", 3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        kill(process)
    assert process.returncode == 130
    assert "; the same command without --overwrite resumes from there" in err


def test_a_second_launch_into_one_folder_is_refused(home):
    """The first one has not even started its workers, and trains on undisturbed, however long the second one waits."""
    first = start(home, "twice", *FOREVER, "parallel.data=2")
    try:
        end = time.monotonic() + 120
        while not (home / "twice" / "lock").exists() and time.monotonic() < end:
            time.sleep(0.02)
        code, _, err = finish(start(home, "twice", *FOREVER, "parallel.data=2", "--overwrite"))
        assert code == 2 and "Traceback" not in err
        assert err == f"error: another process is training in {home / 'twice'}; set train.output to another folder\n"
        wait_for(first, home / "twice", len(lines_of(home / "twice")) + 1)
        first.send_signal(signal.SIGTERM)
        _, err = first.communicate(timeout=60)
        assert first.returncode == 130, err
    finally:
        kill(first)
    assert len(checkpoints_of(home / "twice")) == 1
    assert [path.name for path in (home / "twice" / "workers").iterdir()] == ["attempt_1"]


@pytest.mark.slow
def test_attempts_keep_their_logs(home):
    """The message names the log of the attempt that died, and the log still exists after the next attempt."""
    process = start(home, "attempts", *FOREVER, "parallel.data=2", "--max-restarts", "1")
    try:
        wait_for(process, home / "attempts", 2)
        worker = next(m for m in family(process)[::-1] if "MS_ROLE" in m.environ() and m.environ()["RANK_ID"] == "1")
        worker.send_signal(signal.SIGKILL)
        end = time.monotonic() + 120
        while not (home / "attempts" / "workers" / "attempt_2").exists() and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        kill(process)
    assert process.returncode == 130, err
    assert f"see {home / 'attempts' / 'workers' / 'attempt_1'}; starting again" in out
    assert (home / "attempts" / "workers" / "attempt_1" / "worker_1.log").exists()

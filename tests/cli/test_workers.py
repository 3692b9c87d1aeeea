"""The training command on several devices: it starts its workers, which match one process and end together."""

from __future__ import annotations

import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
SIZES = ["model.vocab_size=512", "model.d_model=32", "model.layers=1", "model.heads=2", "model.head_dim=16"]
SIZES += ["model.d_ff=64", "data.seq_len=32", "train.batch_size=8", "train.peak_tflops=1", "train.eval_every=4"]


def command(home, output, *more):
    paths = [f"data.path={home / 'text.txt'}", f"data.prepared={home / 'prepared'}", f"train.output={home / output}"]
    return [sys.executable, "run/train.py", *SIZES, *paths, *more]


def start(home, output, *more):
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command(home, output, *more), cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def family(process):
    """A command's process and all its descendants."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def workers(process):
    processes = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.environ().get("MS_ROLE") == "MS_WORKER":
                processes.append(child)
        except psutil.Error:
            continue
    return processes


def wait_for_steps(process, folder, seconds=180):
    end = time.monotonic() + seconds
    metrics = folder / "metrics.csv"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no steps in time"
        time.sleep(0.2)


def finish(process, seconds=240):
    try:
        return process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            for member in family(process):
                member.kill()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("workers")
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(900)]
    (home / "text.txt").write_text("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(3000)))
    return home


@pytest.fixture(scope="module")
def both(home):
    """The same eight steps by one process and by four workers that the command starts itself."""
    for output, more in (("one", []), ("four", ["parallel.data=2", "parallel.model=2"])):
        process = start(home, output, "train.steps=8", *more, *(["--profile", "4:5"] if more else []))
        out, err = finish(process)
        assert process.returncode == 0, err[-2000:] + out[-2000:]
    return home / "one", home / "four", out


def rows_of(folder):
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_four_workers_write_what_one_process_writes(both):
    one, four, _ = both
    for ours, theirs in zip(rows_of(four), rows_of(one), strict=True):
        for name in ("loss", "cross_entropy", "learning_rate", "gradient_norm"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-5), name
        for name in ("step", "tokens", "skipped"):
            assert ours[name] == theirs[name]
        for name in ("validation_loss", "validation_bits_per_byte"):
            assert bool(ours[name]) == bool(theirs[name])
            if ours[name]:
                assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-5)


def test_the_model_folder_is_self_contained_with_full_weights(both):
    from safetensors.numpy import load_file

    one, four, _ = both
    ours, theirs = (load_file(folder / "final" / "model.safetensors") for folder in (four, one))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        difference = np.linalg.norm(ours[name] - weight) / max(np.linalg.norm(weight), 1e-6)
        assert difference < 1e-3, name  # Adafactor's steps are signs where gradients are noise
    assert len(list((four / "checkpoints" / "step_000008").glob("rank_*.safetensors"))) == 4


def test_only_the_first_worker_prints(both):
    *_, out = both
    assert "1 pods x 2 data x 2 model" in out and "gradients_mean=False" in out
    assert out.count("bits/byte\n") and out.count("the run is in") == 1
    assert "[WARNING]" not in out and "[INFO]" not in out


def test_a_profile_of_workers_is_of_the_first_one(both):
    """Without a plan beside it: a machine that was measured has no links."""
    *_, out = both
    assert out.count("the profile of the first worker is in") == 1 and "steps 4 to 5: " in out
    assert "measured ms  planned ms" not in out and "without a plan to compare with" in out


def test_a_worker_that_is_killed_ends_the_run_in_one_sentence(home):
    """Within 60 seconds, and no process is left."""
    process = start(home, "killed", "train.steps=100000", "parallel.data=2", "train.eval_every=0")
    wait_for_steps(process, home / "killed")
    members = family(process)
    last = max(workers(process), key=lambda worker: worker.pid)
    last.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, err = finish(process, 60)
    assert time.monotonic() - killed < 60
    assert process.returncode == 2
    (sentence,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.search(r"worker [01] \(process \d+\) was ended by SIGKILL", sentence) and "Traceback" not in err
    assert not psutil.wait_procs(members, timeout=10)[1]


@pytest.mark.parametrize(
    "training",
    [pytest.param(False, id="before they train", marks=pytest.mark.slow), pytest.param(True, id="while they train")],
)
def test_workers_end_with_a_command_that_is_killed(home, training):
    output = f"orphans-{training}"
    process = start(home, output, "train.steps=100000", "parallel.data=2", "train.eval_every=0")
    end = time.monotonic() + 60
    while not workers(process) and time.monotonic() < end:
        time.sleep(0.1)
    if training:
        wait_for_steps(process, home / output)
    members = family(process)
    assert len(members) >= 4  # with msrun and its scheduler
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(members, timeout=20)[1]


def test_sigterm_to_all_processes_saves_and_ends(home):
    """As systemd and Slurm do to end a job."""
    process = start(home, "ended", "train.steps=100000", "parallel.model=2", "train.eval_every=0")
    wait_for_steps(process, home / "ended")
    members = family(process)
    for member in members:
        member.send_signal(signal.SIGTERM)
    _, err = finish(process, 120)
    assert process.returncode == 130, err
    steps = len(rows_of(home / "ended"))
    assert f"stopped after step {steps}; the same command resumes from there" in err
    assert (home / "ended" / "checkpoints" / f"step_{steps:06d}").is_dir()
    assert not psutil.wait_procs(members, timeout=10)[1]


@pytest.mark.slow
def test_ctrl_c_saves_once_and_ends(home):
    more = ["train.eval_every=0", "train.checkpoint_every=0"]
    process = start(home, "stopped", "train.steps=100000", "parallel.model=2", *more)
    wait_for_steps(process, home / "stopped")
    members = family(process)
    os.kill(process.pid, signal.SIGINT)
    _, err = finish(process, 120)
    assert process.returncode == 130, err
    steps = len(rows_of(home / "stopped"))
    assert f"stopped after step {steps}; the same command resumes from there" in err
    assert [path.name for path in (home / "stopped" / "checkpoints").iterdir()] == [f"step_{steps:06d}"]
    assert not psutil.wait_procs(members, timeout=10)[1]


def test_sizes_that_do_not_fit_are_found_before_workers_start(home):
    run = subprocess.run(
        command(home, "never", "parallel.model=4"), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 2 and "model.heads = 2 cannot be sharded" in run.stderr
    assert not (home / "never").exists()


def test_print_sharding_of_palm_540b():
    run = subprocess.run(
        [sys.executable, "run/train.py", "--config", "yaml/palm_540b.yaml", "--print-sharding"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert "6,144 devices" in run.stdout
    q_wi = next(line for line in run.stdout.splitlines() if ".q_wi" in line)
    assert "18,432 x 159,744" in q_wi and "72 x 13,312" in q_wi


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_by_all_workers(home):
    """A learning rate that drives every weight out of range: later steps change nothing, on all workers, to the end."""
    rate = ["optimizer.name=adamw", "optimizer.schedule=constant", "optimizer.learning_rate=1e30"]
    process = start(home, "wild", "train.steps=4", "train.eval_every=0", "parallel.data=2", *rate)
    out, err = finish(process)
    assert process.returncode == 0, err
    assert [int(row["skipped"]) for row in rows_of(home / "wild")] == [0, 1, 1, 1]
    assert "skipped steps: 3" in out

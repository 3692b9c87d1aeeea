"""Settings at the command: what cannot work is refused before anything starts, and what has no effect is said."""

from __future__ import annotations

import csv
import random
import re
import shutil

import pytest

SIZES = ["model.vocab_size=301", "model.d_model=16", "model.layers=1", "model.heads=2", "model.head_dim=8"]
SIZES += ["model.d_ff=32", "data.seq_len=16", "train.batch_size=4", "train.peak_tflops=1", "train.device=CPU"]
SIZES += ["data.path=text.txt", "data.prepared=prepared", "train.eval_every=0"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("settings")
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(200)]
    (home / "text.txt").write_text("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(600)))
    return home


@pytest.fixture
def train(home, door):
    """Runs run/train.py in ``home``: gives exit code, standard output and standard error."""
    return lambda *more: door("train", home, *SIZES, *more)


def losses(folder):
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def advised(error):
    found = re.search(r"set ((?:\w+\.\w+=\S+)(?: and \w+\.\w+=\S+)*)", error)
    return found.group(1).split(" and ")


def test_a_run_of_an_odd_vocabulary_goes_to_a_mesh_by_the_advice_that_it_is_given(home, train):
    """The padding of the vocabulary changes in a run that has begun, with the losses of one in which it did not."""
    run = ["train.output=odd", "train.checkpoint_every=3"]
    assert train(*run, "train.steps=3")[0] == 0
    shutil.copytree(home / "odd", home / "padded")
    assert train(*run, "train.steps=6")[0] == 0

    padded = ["train.output=padded", "train.checkpoint_every=3", "train.steps=6"]
    code, _, err = train(*padded, "parallel.model=2")
    assert code == 2 and "the 301 rows of the embedding cannot be sharded into parallel.model = 2" in err
    assert advised(err) == ["model.vocab_multiple=2"]
    code, _, err = train(*padded, *advised(err))  # on one device, as the workers' start takes long
    assert code == 0, err
    for ours, theirs in zip(losses(home / "padded"), losses(home / "odd"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)  # Adafactor's mean over the table has a row more

    from mindspore_palm import load

    assert load(home / "padded").config.padded_vocab == 302
    code, _, err = train(*padded[:2], "train.steps=9")  # and back
    assert code == 0, err
    assert load(home / "padded").config.padded_vocab == 301


def test_a_run_that_has_begun_is_advised_only_what_may_still_change(home, train):
    shutil.copytree(home / "odd", home / "begun", dirs_exist_ok=True)
    code, _, err = train("train.output=begun", "train.steps=9", "train.batch_size=4", "parallel.data=8")
    assert code == 2 and "train.batch_size = 4 cannot be sharded" in err
    for override in advised(err):
        assert override.startswith("parallel.")
    code, _, err = train("train.output=new", "train.steps=9", "train.batch_size=4", "parallel.data=8")
    assert advised(err) == ["train.batch_size=8", "model.vocab_multiple=8"]


def test_a_dry_run_of_a_fine_tuning_takes_the_sizes_of_the_checkpoint_from_a_relative_path(home, door):
    """The default sizes have four layers; the compiling process works in a folder of its own."""
    more = ["finetune.checkpoint=odd", "data.seq_len=16", "train.batch_size=4", "parallel.data=2"]
    code, out, err = door("dry_run", home, *more, "model.vocab_multiple=2")
    assert code == 0, err
    assert re.search(r"layers +1, all of them compiled", out) and "151 x 16" in out, out


@pytest.mark.parametrize("mesh", ["parallel.data=3", "parallel.data=5", "parallel.pods=3", "parallel.model=6"])
def test_numbers_of_workers_that_mindspore_does_not_partition_for(home, train, mesh):
    code, out, err = train(mesh, "train.output=never", "model.heads=6", "model.d_ff=48", "train.batch_size=60")
    assert code == 2 and all(line.startswith("note: ") for line in out.splitlines())
    (sentence,) = err.splitlines()
    count = mesh.split("=")[1]
    assert f"= {count} devices, and MindSpore partitions for 1, 2, 4 or a multiple of 8; set parallel." in sentence
    assert not (home / "never").exists()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"MS_WORKER_NUM": "4", "MS_ROLE": "MS_WORKER", "RANK_ID": "0"}, "is 1, and msrun started 4 workers; set"),
        ({"MS_WORKER_NUM": "4"}, "MS_WORKER_NUM = 4 is set and MS_ROLE is not"),
        ({"MS_WORKER_NUM": "many", "MS_ROLE": "MS_WORKER"}, "MS_WORKER_NUM = many is not a count"),
        ({"MS_ROLE": "MS_WORKER"}, "MS_ROLE = MS_WORKER is set and MS_WORKER_NUM is not"),
        ({"RANK_ID": "3", "RANK_SIZE": "4"}, "RANK_SIZE = 4 says that this is one of 4 processes"),
        ({"MS_WORKER_NUM": "1", "MS_ROLE": "MS_WORKER", "RANK_ID": "7"}, "RANK_ID = 7 is not one of 1 workers"),
        ({"RANK_SIZE": "two"}, "RANK_SIZE = two is not a count of processes"),
        ({"MS_WORKER_NUM": "1", "MS_ROLE": "MS_WORKER", "RANK_SIZE": "2"}, "RANK_SIZE = 2 and MS_WORKER_NUM = 1"),
    ],
)
def test_workers_that_nobody_asked_for(home, train, monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, _, err = train("train.output=never", "train.steps=3")
    assert code == 2 and said in err and "Traceback" not in err, err
    assert not (home / "never").exists()


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("evaluate", ["--checkpoint", "odd", "--data", "text.txt"]),
        ("convert", ["--from", "odd", "--to", "mindir", "a.mindir"]),
        ("plan", ["--published"]),
        ("dry_run", ["parallel.data=2"]),
        ("prepare_data", ["data.path=text.txt"]),
    ],
)
def test_commands_of_one_process_refuse_to_be_workers(home, door, monkeypatch, command, arguments):
    monkeypatch.setenv("MS_WORKER_NUM", "2")
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    code, _, err = door(command, home, *arguments)
    assert code == 2 or command == "prepare_data"  # whose main() gives the code itself
    assert "runs in one process, and MS_WORKER_NUM = 2: start it without msrun" in err, err


def test_a_setting_without_effect_is_noted_once(home, train):
    code, out, _ = train("train.output=noted", "train.steps=1", "optimizer.warmup_steps=5", "parallel.model=3")
    assert code == 2
    assert out.count("note: ") == 1 and "note: optimizer.warmup_steps = 5 (override optimizer.warmup_steps=5): " in out


def test_of_eight_overrides_the_wrong_one_alone_is_named(train):
    eight = [f"train.{name}" for name in ("steps=9", "seed=3", "keep_last=4", "eval_every=0", "z_loss=0.1")]
    code, _, err = train(*eight, "train.batch_size=10", "train.micro_batch=4", "train.output=never")
    assert code == 2
    assert err == (
        "error: override train.batch_size=10, override train.micro_batch=4: "
        "train.batch_size = 10 is not a multiple of micro_batch = 4; set it to 12\n"
    )


@pytest.mark.parametrize("count", [3, 5, 6])
def test_generation_names_its_own_option(home, door, count):
    code, _, err = door("generate", home, "--checkpoint", "odd", "--devices", count, "a prompt")
    assert code == 2 and f"--devices {count}: " in err and "parallel." not in err
    fits = int(re.search(r"set it to (\d+)", err).group(1))
    assert fits == 1


@pytest.mark.parametrize("setting", ["train.output", "data.prepared"])
def test_a_name_that_is_too_long_is_refused_with_its_setting(home, train, setting):
    code, _, err = train(f"{setting}={'x' * 300}")
    assert code == 2 and f"{setting} = xxx" in err and "this name is too long for a file" in err

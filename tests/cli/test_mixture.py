"""``data.mixture`` as a user has it: it trains, resumes to the same bits, and is refused where it has no meaning."""

from __future__ import annotations

import csv

import pytest
from checkpoints.in_process import trainer, write_text


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    write_text(tmp_path)
    (tmp_path / "other.txt").write_text("".join(f"{i} and {i * i}\n" for i in range(300)))
    return trainer(tmp_path, monkeypatch, capsys)


def mixture(home, first, second):
    paths = home / "text.txt", home / "other.txt"
    return f"data.mixture=[{{path: {paths[0]}, weight: {first}}}, {{path: {paths[1]}, weight: {second}}}]"


def losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [row["loss"] for row in csv.DictReader(file)]


def test_a_mixture_resumes_to_the_same_bits(train, tmp_path):
    code, out, err = train("once", mixture(tmp_path, 2, 1), "train.steps=10")
    assert code == 0, err
    assert "mixture     66.7% " in out and "mixture of the tokens trained on: " in out
    assert train("twice", mixture(tmp_path, 2, 1), "train.steps=5")[0] == 0
    (tmp_path / "other.txt").rename(tmp_path / "moved.txt")
    code, out, err = train("twice", mixture(tmp_path, 4, 2).replace("other", "moved"), "train.steps=10")
    assert code == 0 and "resuming from step 5" in out, err
    assert losses(tmp_path / "twice") == losses(tmp_path / "once") and len(losses(tmp_path / "once")) == 10
    code, _, err = train("twice", mixture(tmp_path, 1, 1).replace("other", "moved"), "train.steps=12")
    assert code == 2 and "data.mixture of " in err and "its text changed since the run began" in err


def test_a_mixture_is_for_text(train, tmp_path):
    assert train("base", "train.steps=2")[0] == 0
    code, _, err = train("tuned", f"finetune.checkpoint={tmp_path / 'base'}", mixture(tmp_path, 1, 1))
    assert code == 2 and "data.mixture is set, and fine-tuning learns from the pairs of data.path" in err

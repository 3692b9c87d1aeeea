"""A tokenizer.json in every command: training and resuming, generation, evaluation, and conversion there and back."""

from __future__ import annotations

import csv
import json

import pytest
from checkpoints.in_process import trainer, write_text
from unit.test_data_byte_level import JSON

from mindspore_palm.checkpoint.model_folder import load_tokenizer


@pytest.fixture
def home(tmp_path):
    pytest.importorskip("tokenizers", reason="the library tokenizers, an extra, reads a tokenizer.json")
    write_text(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(JSON), encoding="utf-8")
    return tmp_path


def losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [row["loss"] for row in csv.DictReader(file)]


def test_every_command_uses_it(home, monkeypatch, capsys, door):
    train, given = trainer(home, monkeypatch, capsys), f"data.tokenizer={home / 'tokenizer.json'}"
    code, _, err = train("small", given)
    assert code == 2 and "has 259 tokens and model.vocab_size = 300; set model.vocab_size to 259" in err
    sizes = (given, "model.vocab_size=259")
    assert train("once", *sizes, "train.steps=8")[0] == 0
    assert train("twice", *sizes, "train.steps=5")[0] == 0
    (home / "tokenizer.json").rename(home / "moved.json")  # known by content
    moved = sizes[0].replace("tokenizer.json", "moved.json")
    code, out, err = train("twice", moved, sizes[1], "train.steps=8")
    assert code == 0 and "resuming from step 5" in out, err
    assert losses(home / "twice") == losses(home / "once")
    assert load_tokenizer(home / "once").serialized == (home / "moved.json").read_bytes()

    code, out, err = door("generate", home, "--checkpoint", "once", "--max-tokens", 4, "th<|end é")
    assert code == 0 and out.startswith("th<|end é"), err
    code, out, err = door("evaluate", home, "--checkpoint", "once", "--data", "text.txt")
    assert code == 0 and "bits/byte" in out, err
    code, out, err = door("convert", home, "--from", "once", "--to", "huggingface-safetensors", "hf", "--length", 8)
    assert code == 0, err
    assert (home / "hf" / "tokenizer.json").read_bytes() == (home / "moved.json").read_bytes()
    code, out, err = door("convert", home, "--from", "huggingface-safetensors", "hf", "--to", "back", "--length", 8)
    assert code == 0 and load_tokenizer(home / "back").vocab_size == 259, err

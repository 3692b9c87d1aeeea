"""The commands that score a trained model, from the folder that training leaves to tables and JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindspore_palm.config import Settings

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 8, "d_ff": 32, "vocab_size": 310}
TEXT = "".join(f"def f{i}(a, b):\n    return a + {i} * b\n" for i in range(400))
CHOICES = [{"prompt": "def f", "choices": ["1(a", "(((("], "answer": i % 2} for i in range(4)]
ANSWERS = [{"prompt": "def f", "answer": "1"}, {"prompt": "return a", "answer": [" +", " -"]}]


@pytest.fixture(scope="module")
def home(device, tmp_path_factory):
    """A finished run, a text, and questions of both kinds."""
    from mindspore_palm import PaLM, Tokenizer
    from mindspore_palm.train.saved import save_model, weights_of

    home = tmp_path_factory.mktemp("evaluate")
    tokenizer = Tokenizer.train([TEXT], 310, home / "tokenizer.model")
    settings = Settings.model_validate({"model": SIZES, "data": {"seq_len": 32}})
    save_model(home / "run" / "final", weights_of(PaLM(settings.model)), tokenizer.serialized, settings, step=1)
    (home / "text.txt").write_text(TEXT[:2000])
    (home / "documents.jsonl").write_text("".join(json.dumps({"text": TEXT[i : i + 90]}) + "\n" for i in range(5)))
    for name, records in (("choices", CHOICES), ("answers", ANSWERS)):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return home


@pytest.fixture
def command(door, home):
    return lambda *arguments: door("evaluate", home, *arguments)


EVERYTHING = ["--data", "text.txt", "--data", "documents.jsonl", "--task", "choices.jsonl", "--task", "answers.jsonl"]
EVERYTHING += ["--shots", 1, "--stride", 16, "--max-tokens", 2]


def test_tables_and_json_are_the_same_bits_twice(command, home):
    outputs = []
    for name in ("first.json", "second.json"):
        code, out, err = command("--checkpoint", "run", *EVERYTHING, "--json", name)
        assert code == 0, err
        outputs.append(out)
    assert outputs[0] == outputs[1]
    assert (home / "first.json").read_bytes() == (home / "second.json").read_bytes()
    results = json.loads((home / "first.json").read_text())
    text = results["text"]["text.txt"]
    assert (text["documents"], text["size"], text["window"], text["stride"]) == (1, 2000, 32, 16)
    low, value, high = (text["nats_per_token"][name] for name in ("low", "value", "high"))
    assert low < value < high
    np.testing.assert_allclose(text["bits_per_byte"]["value"], value * text["tokens"] / 2000 / np.log(2))
    assert results["text"]["documents.jsonl"]["documents"] == 5
    choices = results["tasks"]["choices.jsonl"]
    assert choices["measures"]["accuracy"]["value"] == 0.5  # the same question four times, each choice right twice
    assert results["tasks"]["answers.jsonl"]["kind"] == "exact match"
    assert "95 % confidence, over 5 documents" in outputs[0]
    assert "95 % confidence, over the windows of the document" in outputs[0]


def test_bad_input(command, home, tmp_path):
    (home / "binary.txt").write_bytes(b"abc \xff")
    (home / "empty.txt").touch()
    (home / "broken.jsonl").write_text('{"prompt": ')
    shutil.copytree(home / "run" / "final", tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.model").unlink()
    shutil.copytree(home / "run" / "final", tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut")
    cases = [
        (["--checkpoint", "nowhere", "--data", "text.txt"], "there is no folder nowhere"),
        (["--checkpoint", tmp_path / "bare", "--data", "text.txt"], "copy the tokenizer"),
        (["--checkpoint", tmp_path / "cut", "--data", "text.txt"], "not a whole safetensors file"),
        (["--checkpoint", "run"], "there is nothing to score; name a text by --data"),
        (["--checkpoint", "run", "--data", "nowhere.txt"], "nowhere.txt: there is no such file"),
        (["--checkpoint", "run", "--data", "binary.txt"], "not UTF-8 text at byte 4"),
        (["--checkpoint", "run", "--data", "empty.txt"], "there is no text to score"),
        (["--checkpoint", "run", "--data", "text.txt", "--stride", 33], "a stride of 33 does not fit a window of 32"),
        (["--checkpoint", "run", "--data", "text.txt", "--stride", 0], "a stride of 0"),
        (["--checkpoint", "run", "--data", "text.txt", "--window", 0], "--window 0 must be 1 or more"),
        (["--checkpoint", "run", "--data", "text.txt", "--window", 33], "trained on 32 tokens and knows no longer"),
        (["--checkpoint", "run", "--data", "text.txt", "--batch", -1], "--batch -1 must be 1 or more"),
        (["--checkpoint", "run", "--task", "choices.jsonl", "--shots", 4], "lower --shots"),
        (["--checkpoint", "run", "--task", "broken.jsonl"], "broken.jsonl, line 1"),
        (["--checkpoint", "run", "--task", "answers.jsonl", "--max-tokens", 40], "no room for a prompt"),
        (["--checkpoint", "run", "--data", "text.txt", "--json", "nowhere/out.json"], "there is no folder nowhere"),
    ]
    for arguments, said in cases:
        code, _, err = command(*arguments)
        assert code == 2, (arguments, err)
        assert re.fullmatch(r"error: .*\n", err), err
        assert said in err


def test_the_harness_is_optional(door, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = door("harness", tmp_path)
    assert (code, err) == (2, "error: the harness is not installed; pip install lm-eval==0.4.13\n")


TASKS = {
    "choices": "output_type: multiple_choice\ndoc_to_choice: '{{choices}}'\ndoc_to_target: answer\n"
    "metric_list: [{metric: acc}, {metric: acc_norm}]",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_target: '{{text}}'\nmetric_list: [{metric: bits_per_byte}]",
    "answers": "output_type: generate_until\ndoc_to_target: '{{answer}}'\nmetric_list: [{metric: exact_match}]\n"
    "generation_kwargs: {until: [')'], max_gen_toks: 4}",
}


@pytest.mark.harness
def test_the_harness_drives_the_model(home, tmp_path, command):
    """Three local tasks, one for each kind of request; the figures are those of our own evaluation."""
    (tmp_path / "answers.jsonl").write_text('{"prompt": "def f", "answer": "1"}\n')
    shutil.copy(home / "choices.jsonl", tmp_path)
    (tmp_path / "rolling.jsonl").write_text(json.dumps({"text": TEXT[:300]}) + "\n")
    for name, task in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(
            f"task: palm_{name}\ndataset_path: json\ndataset_kwargs:\n  data_files: "
            f"{{test: {tmp_path / name}.jsonl}}\ntest_split: test\ntarget_delimiter: ''\n"
            f"doc_to_text: '{'' if name == 'rolling' else '{{prompt}}'}'\n{task}\n"
        )
    arguments = ["--model", "mindspore_palm", "--model_args", f"checkpoint={home / 'run'}", "--batch_size", "4"]
    arguments += ["--tasks", ",".join(f"palm_{name}" for name in TASKS), "--include_path", str(tmp_path)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    run = subprocess.run(
        [sys.executable, ROOT / "run" / "harness.py", *arguments, "--output_path", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(file.read_text())["results"]
    assert results["palm_choices"]["acc,none"] == 0.5
    assert results["palm_answers"]["exact_match,none"] in (0.0, 1.0)

    from mindspore_palm import load
    from mindspore_palm.evaluate.scorer import Scorer, continuation
    from mindspore_palm.train.saved import load_tokenizer

    scorer = Scorer(load(home / "run"), load_tokenizer(home / "run"), window=32)
    ids = np.array(scorer.tokenizer.encode(TEXT[:300]), np.int32)
    rows = [continuation(ids[: start + 32], start, 32, "") for start in range(0, len(ids), 32)]
    bits = sum(score.nats for score in scorer(rows)) / np.log(2) / 300
    np.testing.assert_allclose(results["palm_rolling"]["bits_per_byte,none"], bits, rtol=1e-6)

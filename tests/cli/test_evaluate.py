"""The evaluate and harness commands, from the folder of a trained model to tables and JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 8, "d_ff": 32, "vocab_size": 310}
TEXT = "".join(f"def f{i}(a, b):\n    return a + {i} * b\n" for i in range(400))
CHOICES = [{"prompt": "def f", "choices": ["1(a", "(((("], "answer": i % 2} for i in range(4)]
ANSWERS = [{"prompt": "def f", "answer": "1"}, {"prompt": "return a", "answer": [" +", " -"]}]


@pytest.fixture(scope="module")
def home(device, tmp_path_factory):
    """A finished run, a text, and questions of both kinds."""
    from mindspore_palm import PaLM, Tokenizer
    from mindspore_palm.checkpoint.model_folder import save_model, weights_of

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
        (["--checkpoint", tmp_path / "cut", "--data", "text.txt"], "not a complete safetensors file"),
        (["--checkpoint", "run"], "there is nothing to score; name a text with --data"),
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
        (["--checkpoint", "run", "--data", "nowhere.txt"], "error: --data nowhere.txt: "),
        (["--checkpoint", "run", "--data", "documents.jsonl", "--text-field", "body"], "set --text-field to one of"),
        (["--checkpoint", "run", "--data", "text.txt", "--data", "text.txt"], "--data text.txt is given twice"),
        (["--checkpoint", "run", "--task", "choices.jsonl", "--seed", 1, "--seed", 2], "--seed is given twice"),
        (["--checkpoint", "run", "--data", "text.txt", "--stride", 33], "--stride 33: "),
        (["--checkpoint", "run", "--data", "text.txt", "--window", 33], "--window 33: "),
        (["--checkpoint", "run", "--task", "answers.jsonl", "--stop", ""], "--stop '' is empty"),
    ]
    for arguments, problem in cases:
        code, _, err = command(*arguments)
        assert code == 2, (arguments, err)
        assert re.fullmatch(r"error: .*\n", err), err
        assert problem in err


LATE = {
    "the last line of the last text": ["--data", "text.txt", "--data", "late.jsonl"],
    "the last line of the last task": ["--data", "text.txt", "--task", "choices.jsonl", "--task", "late_choices.jsonl"],
    "a choice that does not fit": ["--data", "text.txt", "--task", "long_choice.jsonl"],
    "no room for an answer": ["--data", "text.txt", "--task", "answers.jsonl", "--max-tokens", 31],
    "a stride": ["--data", "text.txt", "--stride", 40],
    "too few examples": ["--data", "text.txt", "--task", "choices.jsonl", "--shots", 2, "--examples", "one.jsonl"],
    "no text": ["--data", "text.txt", "--data", "no_text.txt"],
    "the output is a folder": ["--data", "text.txt", "--json", "run"],
    "the output is an input": ["--data", "text.txt", "--json", "text.txt"],
    "the output is the model": ["--data", "text.txt", "--json", "run/final/config.yaml"],
    "the output cannot be written": ["--data", "text.txt", "--json", "/proc/scores.json"],
}


@pytest.mark.parametrize("case", LATE)
def test_errors_are_reported_before_the_model_is_opened(command, home, case, monkeypatch):
    from mindspore_palm.evaluate import evaluate

    (home / "late.jsonl").write_text('{"text": "a"}\n' * 50 + '{"text": 5}\n')
    (home / "late_choices.jsonl").write_text(f"{json.dumps(CHOICES[0])}\n" * 50 + '{"prompt": "a", "choices": ["b"]}\n')
    long = {"prompt": "def f", "choices": ["1(a", "1" * 50], "answer": 0}
    (home / "long_choice.jsonl").write_text(f"{json.dumps(CHOICES[0])}\n" * 5 + json.dumps(long))
    (home / "one.jsonl").write_text(json.dumps(CHOICES[0]))
    (home / "no_text.txt").touch()
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}

    def opened(_):
        raise AssertionError("the model was opened")

    monkeypatch.setattr(evaluate, "load", opened)
    code, out, err = command("--checkpoint", "run", *LATE[case])
    assert (code, out) == (2, "") and re.fullmatch(r"error: .*\n", err), err
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_options_without_effect_are_noted(command):
    code, out, err = command("--checkpoint", "run", "--data", "text.txt", "--shots", 1, "--max-tokens", 5, "--seed", 3)
    assert code == 0, err
    for option in ("--shots", "--max-tokens", "--seed"):
        assert f"note: {option} has no effect" in out
    code, out, err = command("--checkpoint", "run", "--task", "choices.jsonl", "--examples", "choices.jsonl")
    assert code == 0 and "note: --examples has no effect" in out
    code, out, err = command("--checkpoint", "run", *EVERYTHING)
    assert code == 0 and "note: " not in out


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("weight", ["embedding", "blocks.0.q_wi", "blocks.0.norm.scale"])
def test_a_model_of_nan_scores_nothing(command, home, tmp_path, value, weight):
    """One element of one weight is enough; the message names the model and the text."""
    shutil.copytree(home / "run" / "final", tmp_path / "lost")
    weights = load_file(tmp_path / "lost" / "model.safetensors")
    weights[weight].reshape(-1)[300 * SIZES["d_model"] if weight == "embedding" else 0] = float(value)
    save_file(weights, tmp_path / "lost" / "model.safetensors")
    for arguments, text in (
        (["--data", "text.txt"], "text.txt"),
        (["--task", "choices.jsonl"], "choices.jsonl: "),
        (["--task", "answers.jsonl", "--max-tokens", 2], "answers.jsonl: "),
    ):
        code, out, err = command("--checkpoint", tmp_path / "lost", *arguments, "--json", tmp_path / "scores.json")
        assert (code, out) == (2, ""), (out, err)
        assert re.fullmatch(r"error: .*are not finite.*\n", err) and text in err and str(tmp_path / "lost") in err, err
        assert not (tmp_path / "scores.json").exists()


def test_the_same_questions_with_the_space_on_either_side(command, home):
    """Accuracy and accuracy by byte are the same, whichever choices this model prefers."""
    texts = [(" ", "+", "-"), (" ", "1", "(a"), ("\n  ", "  return", "x"), (" ", "a", " a")]
    results = []
    for name in ("before", "after"):
        records = []
        for prompt in ("def f1", "return a", "x = 3", "(a, b):"):
            for space, *choices in texts:
                if name == "before":
                    question = {"prompt": prompt + space, "choices": choices}
                else:
                    question = {"prompt": prompt, "choices": [space + choice for choice in choices]}
                records += [{**question, "answer": 0}, {**question, "answer": 0}, {**question, "answer": 1}]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        code, _, err = command("--checkpoint", "run", "--task", f"{name}.jsonl", "--json", "scores.json")
        assert code == 0, err
        results += json.loads((home / "scores.json").read_text())["tasks"].values()
    assert results[0] == results[1]


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


def write_task(folder, name, task):
    (folder / f"{name}.yaml").write_text(
        f"task: palm_{name}\ndataset_path: json\ndataset_kwargs:\n  data_files: "
        f"{{test: {folder / name}.jsonl}}\ntest_split: test\ntarget_delimiter: ''\n"
        f"doc_to_text: '{'' if name == 'rolling' else '{{prompt}}'}'\n{task}\n"
    )


def run_harness(folder, *arguments):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    return subprocess.run(
        [sys.executable, ROOT / "run" / "harness.py", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


@pytest.mark.harness
def test_parameters_of_all_tasks_are_checked_before_any_is_computed(home, tmp_path):
    shutil.copy(home / "choices.jsonl", tmp_path)
    (tmp_path / "answers.jsonl").write_text('{"prompt": "def f", "answer": "1"}\n')
    write_task(tmp_path, "choices", TASKS["choices"])
    write_task(tmp_path, "answers", TASKS["answers"].replace("max_gen_toks: 4", "num_beams: 4"))
    arguments = ["--model", "mindspore_palm", "--model_args", f"checkpoint={home / 'run'}", "--include_path", tmp_path]
    run = run_harness(tmp_path, *map(str, arguments), "--tasks", "palm_choices,palm_answers")
    assert run.returncode == 2, run.stderr[-3000:]
    assert run.stderr.splitlines()[-1].startswith("error: the task asks for num_beams = 4"), run.stderr[-3000:]
    assert "Traceback" not in run.stderr and "Running" not in run.stderr


@pytest.mark.harness
def test_the_harness_drives_the_model(home, tmp_path, command):
    """Three local tasks, one for each kind of request; scores are those of this package's evaluation."""
    (tmp_path / "answers.jsonl").write_text('{"prompt": "def f", "answer": "1"}\n')
    shutil.copy(home / "choices.jsonl", tmp_path)
    (tmp_path / "rolling.jsonl").write_text(json.dumps({"text": TEXT[:300]}) + "\n")
    for name, task in TASKS.items():
        write_task(tmp_path, name, task)
    arguments = ["--model", "mindspore_palm", "--model_args", f"checkpoint={home / 'run'}", "--batch_size", "4"]
    arguments += ["--tasks", ",".join(f"palm_{name}" for name in TASKS), "--include_path", str(tmp_path)]
    run = run_harness(tmp_path, *arguments, "--output_path", str(tmp_path / "out"))
    assert run.returncode == 0, run.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(file.read_text())["results"]
    assert results["palm_choices"]["acc,none"] == 0.5
    assert results["palm_answers"]["exact_match,none"] in (0.0, 1.0)

    from mindspore_palm import load
    from mindspore_palm.checkpoint.model_folder import load_tokenizer
    from mindspore_palm.evaluate.scorer import Scorer, continuation

    scorer = Scorer(load(home / "run"), load_tokenizer(home / "run"), window=32)
    ids = np.array(scorer.tokenizer.encode(TEXT[:300]), np.int32)
    rows = [continuation(ids[: start + 32], start, 32, "") for start in range(0, len(ids), 32)]
    bits = sum(score.nats for score in scorer(rows)) / np.log(2) / 300
    np.testing.assert_allclose(results["palm_rolling"]["bits_per_byte,none"], bits, rtol=1e-6)


@pytest.fixture
def harness(home):
    from mindspore_palm.evaluate.harness import HarnessPaLM

    return HarnessPaLM(str(home / "run"))


def request(*arguments):
    return SimpleNamespace(args=arguments)


@pytest.mark.harness
def test_the_harness_has_the_same_boundary(harness, home):
    """A likelihood does not depend on the side of the white space; generated texts are those of the generator."""
    pairs = [("def f1 ", "+"), ("def f1", " +"), ("", " a"), (" ", "a"), ("a\n\t", "b"), ("a", "\n\tb"), ("a\n", "\tb")]
    scores = harness.loglikelihood([request(*pair) for pair in pairs])
    assert scores[0] == scores[1] and scores[2] == scores[3] and scores[4] == scores[5] == scores[6]

    from mindspore_palm import Generator, Sampling, load
    from mindspore_palm.checkpoint.model_folder import load_tokenizer

    generator = Generator(load(home / "run"), load_tokenizer(home / "run"), context=32)
    prompts = ["def f1 ", "def f1", "return a\n    "]
    texts = harness.generate_until([request(prompt, {"max_gen_toks": 6}) for prompt in prompts])
    assert texts == [generation.text for generation in generator(prompts, Sampling(max_tokens=6))]


@pytest.mark.harness
@pytest.mark.parametrize(
    ("generation_kwargs", "problem"),
    [
        ({"num_beams": 4}, "num_beams = 4, which this model does not have"),
        ({"max_length": 9}, "max_length = 9"),
        ({"max_gen_toks": 4, "max_new_tokens": 5}, "max_gen_toks = 4 and max_new_tokens = 5"),
        ({"max_gen_toks": 0}, "the task asks for max_gen_toks = 0: must be 1 or more"),
        ({"max_new_tokens": "9"}, "max_new_tokens = '9'; it must be a whole number"),
        ({"do_sample": True, "temperature": -1}, "the task asks for temperature = -1: must be"),
        ({"do_sample": True, "top_p": 3.0}, "the task asks for top_p = 3.0: must be"),
        ({"top_k": "all"}, "top_k = 'all'; it must be a whole number"),
        ({"until": [3]}, "until = [3]; it must be a text or a list"),
    ],
    ids=repr,
)
def test_unsupported_parameters_of_a_task_are_refused(generation_kwargs, problem):
    from mindspore_palm.evaluate.harness import sampling_of

    with pytest.raises(UserError) as caught:
        sampling_of(generation_kwargs)
    assert problem in str(caught.value)


@pytest.mark.harness
def test_supported_parameters_of_a_task_are_used():
    from mindspore_palm.evaluate.harness import sampling_of
    from mindspore_palm.generate import Sampling

    assert sampling_of({}) == Sampling(max_tokens=256)
    sampled = {"do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": 4, "repetition_penalty": 1.2}
    expected = Sampling(max_tokens=7, stop=("a",), temperature=0.5, top_k=3, top_p=0.9, seed=4, repetition_penalty=1.2)
    assert sampling_of({**sampled, "max_tokens": 7, "until": "a", "num_beams": 1}) == expected
    assert sampling_of({"do_sample": False, "temperature": 0.5, "until": ["x", ""]}) == Sampling(stop=("x",))
    assert sampling_of({"temperature": 0.5}).temperature == 0.5
    assert sampling_of({"do_sample": True}).temperature == 1.0


@pytest.mark.harness
def test_arguments_of_the_harness(home, door, tmp_path, capsys):
    from mindspore_palm.evaluate.harness import HarnessPaLM

    for arguments, problem in (
        ({"windows": 3}, "--model_args windows=3: there are checkpoint, window and batch_size"),
        ({"window": 33}, "window = 33: the model was trained on 32 tokens"),
        ({"window": 0}, "window = 0 must be 1 or more"),
        ({"window": "all"}, "window = all must be"),
        ({"batch_size": "auto"}, "batch_size = auto must be a number"),
        ({"batch_size": 0}, "batch_size = 0 must be a number"),
        ({"checkpoint": ""}, "--model_args names no model"),
    ):
        with pytest.raises(UserError) as caught:
            HarnessPaLM(**{"checkpoint": str(home / "run"), **arguments})
        assert problem in str(caught.value)
    HarnessPaLM(str(home / "run"), device="cpu", max_batch_size=4)
    assert "note: max_batch_size = 4 has no effect" in capsys.readouterr().err
    code, _, err = door("harness", tmp_path, "--tasks", "a", "--tasks=b")
    assert (code, err) == (2, "error: --tasks is given twice, and the harness would keep the last; give it once\n")


@pytest.mark.harness
def test_the_harness_refuses_a_model_of_nan(home, tmp_path):
    from mindspore_palm.evaluate.harness import HarnessPaLM

    shutil.copytree(home / "run" / "final", tmp_path / "lost")
    weights = load_file(tmp_path / "lost" / "model.safetensors")
    weights["blocks.0.q_wi"][:] = np.nan
    save_file(weights, tmp_path / "lost" / "model.safetensors")
    model = HarnessPaLM(str(tmp_path / "lost"))
    for ask in (
        lambda: model.loglikelihood([request("a", "b")]),
        lambda: model.loglikelihood_rolling([request("def f")]),
        lambda: model.generate_until([request("a", {"until": ["\n"]})]),
    ):
        with pytest.raises(UserError, match=r"lost: the logits for .* are not finite"):
            ask()

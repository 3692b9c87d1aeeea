"""Fine-tuning by the command: a toy task learned by all weights and by LoRA, stopped and resumed, and refused."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints.command import finish
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
LETTERS = "abcdefghijklmnop"
SIZES = {"layers": 2, "d_model": 64, "heads": 2, "head_dim": 16, "d_ff": 128, "vocab_size": 280}
RUN = ["data.path=pairs.jsonl", "data.seq_len=8", "data.validation_fraction=0.1", "finetune.checkpoint=base"]
RUN += ["train.device=CPU", "train.peak_tflops=1", "train.batch_size=32", "train.eval_every=0", "train.steps=150"]
FULL = ["--config", ROOT / "yaml" / "finetune.yaml", *RUN, "optimizer.learning_rate=0.02", "train.output=full"]
LORA = ["--config", ROOT / "yaml" / "finetune_lora.yaml", *RUN, "optimizer.learning_rate=0.02", "train.output=lora"]
# The target is the letter after the second one of the prompt. A model that ignores the prompt needs ln(16) nats for it,
# and half of that for the mean of it and [eod].
BLIND = np.log(16) / 2


@pytest.fixture(scope="module")
def home(device, tmp_path_factory):
    """A folder with pairs, and a model with a tokenizer that has not been trained on them."""
    from mindspore_palm import PaLM, Tokenizer
    from mindspore_palm.checkpoint.model_folder import save_model, weights_of
    from mindspore_palm.config import Settings

    home = tmp_path_factory.mktemp("finetune")
    text = "".join(f"{a} {b}>\n" for a in LETTERS for b in LETTERS)
    tokenizer = Tokenizer.train([text], 280, home / "tiny.model")
    settings = Settings.model_validate({"model": SIZES})
    save_model(home / "base", weights_of(PaLM(settings.model, seed=1)), tokenizer.serialized, settings, step=5)
    pairs = [{"prompt": f"{a} {b}>", "target": LETTERS[(i + 1) % 16]} for a in LETTERS for i, b in enumerate(LETTERS)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return home


def rows_of(folder):
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        times = ("seconds", "tokens_per_second", "mfu", "hfu")
        return [{name: text for name, text in row.items() if name not in times} for row in csv.DictReader(file)]


def learned(folder):
    """Held-out loss of the finished run in nats/token, and how many of 32 prompts are answered correctly."""
    from mindspore_palm import Generator, Sampling, load
    from mindspore_palm.checkpoint.model_folder import load_tokenizer

    generator = Generator(load(folder), load_tokenizer(folder), context=8, batch=32)
    asked = [(f"{a} {b}>", LETTERS[(i + 1) % 16]) for a in "cm" for i, b in enumerate(LETTERS)]
    answers = generator([prompt for prompt, _ in asked], Sampling(max_tokens=4, temperature=0.0))
    right = sum(answer.text == target for answer, (_, target) in zip(answers, asked, strict=True))
    return float(rows_of(folder)[-1]["validation_loss"]), right


def loss_without_dropout(home):
    """Loss of the base model of all runs, on the batch of their first step."""
    from mindspore_palm import load
    from mindspore_palm.checkpoint.model_folder import load_tokenizer
    from mindspore_palm.data import Batches, read_pairs
    from mindspore_palm.settings import load_settings
    from mindspore_palm.train.evaluate import Evaluator

    settings, tokenizer = load_settings(home / "full" / "config.yaml")[0], load_tokenizer(home / "base")
    pairs = read_pairs(settings.data, settings.finetune, tokenizer).train
    batches = Batches(pairs, settings.data.seq_len, tokenizer.eod, settings.train.batch_ramp(), settings.train.seed)
    return Evaluator(load(home / "base"), tokenizer.piece_bytes)([batches.batch(0)]).nats_per_token


def test_all_weights_learn_a_toy_task(home, door):
    code, out, err = door("train", home, *FULL)
    assert code == 0, err
    assert "base, all weights, dropout 0.1" in out and "gzip" not in out
    first = float(rows_of(home / "full")[0]["cross_entropy"])
    assert first > 4  # it was not trained: ln(280) is 5.6
    assert abs(first - loss_without_dropout(home)) > 1e-3  # of the same batch
    loss, right = learned(home / "full")
    assert loss < BLIND / 4 and right >= 31
    assert sorted(path.name for path in (home / "full" / "final").iterdir()) == [
        "README.md", "config.yaml", "model.safetensors", "tokenizer.model"
    ]  # fmt: skip
    base = json.loads(next((home / "full" / "checkpoints").glob("*/state.json")).read_text())["progress"]["base"]
    card = (home / "full" / "final" / "README.md").read_text()
    assert base and f"| Fine-tuned from | weights with the identity `{base}` |" in card
    code, out, _ = door("train", home, *FULL)
    assert code == 0 and "is finished" in out


def test_lora_learns_it_and_resumes_to_the_same_bits(home, door):
    """Uninterrupted, and resumed from step 100 of 150: dropout, adapters and moments are those of the step."""
    code, out, err = door("train", home, *LORA)
    assert code == 0, err
    assert "LoRA of rank 16: 21,504 trained parameters beside" in out
    loss, right = learned(home / "lora")
    assert loss < BLIND / 4 and right >= 31

    shutil.copytree(home / "lora", home / "parts")
    for name in ("checkpoints/step_000150", "final"):
        shutil.rmtree(home / "parts" / name)
    base = home / "base" / "model.safetensors"
    content = base.read_bytes()
    save_file({name: weight + 1 for name, weight in load_file(base).items()}, base)  # trained further in the meantime
    code, out, err = door("train", home, *LORA[:-1], "train.output=parts")
    base.write_bytes(content)
    assert code == 0 and "resuming from step 100" in out, err
    assert rows_of(home / "parts") == rows_of(home / "lora")
    last = "checkpoints/step_000150/rank_0.safetensors"
    for name in ("final/model.safetensors", "adapter.safetensors", last):
        assert (home / "parts" / name).read_bytes() == (home / "lora" / name).read_bytes()

    before, after = (load_file(home / name / "model.safetensors") for name in ("base", "lora/final"))
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert same == {name for name in before if not name.endswith(("q_wi", "kv", "o_wo"))}

    from mindspore_palm import load
    from mindspore_palm.checkpoint.adapter import with_adapter

    adapted = with_adapter(load(home / "base"), home / "lora" / "adapter.safetensors")
    checkpoint = load(home / "lora" / "checkpoints" / "step_000150")  # not merged on disk
    for network in (adapted, checkpoint):
        for weight in network.get_parameters():
            np.testing.assert_array_equal(weight.asnumpy(), after[weight.name])


def test_the_last_row_is_the_evaluation_of_all_held_out_text(home, door):
    """Earlier evaluations use a sample; the last row, the printed loss and the model's own score use all of it."""
    from mindspore_palm import load
    from mindspore_palm.checkpoint.model_folder import load_tokenizer
    from mindspore_palm.data import read_pairs, validation_batches
    from mindspore_palm.settings import load_settings
    from mindspore_palm.train.evaluate import Evaluator

    sample = ["train.eval_sequences=2", "train.steps=4", "train.eval_every=2", "train.output=sampled"]
    code, out, err = door("train", home, *FULL[:-1], *sample)
    assert code == 0, err
    settings, tokenizer = load_settings(home / "sampled" / "config.yaml")[0], load_tokenizer(home / "sampled")
    pairs = read_pairs(settings.data, settings.finetune, tokenizer).validation
    batches = validation_batches(pairs, settings.data.seq_len, tokenizer.eod, 8)
    expected = Evaluator(load(home / "sampled"), tokenizer.piece_bytes)(batches)
    rows = rows_of(home / "sampled")
    assert float(rows[-1]["validation_loss"]) == pytest.approx(expected.nats_per_token, rel=1e-6)
    assert float(rows[-1]["validation_bits_per_byte"]) == pytest.approx(expected.bits_per_byte, rel=1e-6)
    assert f"held out, all {expected.tokens:,} tokens: {expected.nats_per_token:.4f} nats/token" in out
    assert rows[1]["validation_loss"] and rows[1]["validation_loss"] != rows[-1]["validation_loss"]


@pytest.mark.slow
def test_pairs_that_end_in_white_space_are_answered_as_they_are_chosen(home, door):
    """Training, generation and choice split prompt and target alike: exact match and multiple choice agree."""
    asked = [(f"{a} {b}> ", LETTERS[(i + 1) % 16]) for a in LETTERS for i, b in enumerate(LETTERS)]
    lines = "".join(json.dumps({"prompt": prompt, "target": target}) + "\n" for prompt, target in asked)
    (home / "spaced.jsonl").write_text(lines)
    code, _, err = door("train", home, *FULL[:-1], "train.output=spaced", "data.path=spaced.jsonl", "train.steps=120")
    assert code == 0, err
    questions = [prompt_and_target for number, prompt_and_target in enumerate(asked) if number % 5 == 0]
    for name, fields in (
        ("free", lambda target: {"answer": target}),
        ("chosen", lambda target: {"choices": list(LETTERS), "answer": LETTERS.index(target)}),
    ):
        records = ({"prompt": prompt, **fields(target)} for prompt, target in questions)
        (home / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    scores = ["--task", "free.jsonl", "--task", "chosen.jsonl", "--max-tokens", 3, "--batch", 16, "--json", "s.json"]
    code, _, err = door("evaluate", home, "--checkpoint", "spaced", *scores)
    assert code == 0, err
    results = json.loads((home / "s.json").read_text())["tasks"]
    right = {name: measure["value"] for task in results.values() for name, measure in task["measures"].items()}
    assert min(right.values()) >= 0.9, right


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["finetune.checkpoint=nowhere"], "there is no folder nowhere"),
        (["finetune.checkpoint=no_tokenizer"], "no_tokenizer/tokenizer.model; copy the tokenizer"),
        (["finetune.checkpoint=cut"], "cut/model.safetensors: this is not a complete safetensors file"),
        (["finetune.checkpoint=."], "name the folder of a finished run"),
        (["data.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["data.path=tiny.model"], "learns from a .jsonl of pairs"),
        (["finetune.target_field=answer"], "set finetune.target_field to one of the fields here (prompt, target)"),
        (["data.seq_len=3"], "set data.seq_len to "),
        (["model.layers=3"], "leave the section model out"),
        (["model.layers=4"], "model.layers = 4, and base has 2"),  # the default, but given explicitly
        (["data.tokenizer=tiny.model"], "keeps its own tokenizer; leave it out"),
        (["train.output=base"], "set train.output to another folder"),
        (["train.output=base", "--overwrite"], "set train.output to another folder"),
        (["parallel.model=2", "finetune.lora_rank=4"], "finetune.lora_rank=4 is for one device"),
        (["finetune.checkpoint=", "finetune.lora_rank=4"], "set finetune.checkpoint"),
        (["finetune.dropout=1.0"], "finetune.dropout = 1.0"),
    ],
)
def test_refused_in_a_sentence(home, door, more, said):
    for name in ("no_tokenizer", "cut"):
        shutil.copytree(home / "base", home / name, dirs_exist_ok=True)
    (home / "no_tokenizer" / "tokenizer.model").unlink()
    whole = (home / "cut" / "model.safetensors").read_bytes()
    (home / "cut" / "model.safetensors").write_bytes(whole[:5000])
    before = {path: path.read_bytes() for path in (home / "base").iterdir()}
    code, _, err = door("train", home, *FULL[:-1], "train.output=refused", *more)
    assert code == 2 and said in err and "Traceback" not in err, err
    assert {path: path.read_bytes() for path in (home / "base").iterdir()} == before
    assert not (home / "refused" / "final").exists()


def test_the_model_is_the_checkpoints_in_what_is_printed(home, door):
    code, out, _ = door("train", home, *FULL, "--print-config")
    assert code == 0
    assert "d_model: 64" in out and "# finetune.checkpoint" in out


def test_the_vocabulary_may_be_padded_as_a_mesh_needs_it(home, door):
    """A mesh of three or nine devices needs it; rows without a token start as zeros."""
    code, _, err = door(
        "train",
        home,
        *FULL[:-1],
        "train.output=padded",
        "train.steps=1",
        "train.eval_every=0",
        "model.vocab_multiple=9",
    )
    assert code == 0, err
    before, after = (load_file(home / name / "model.safetensors")["embedding"] for name in ("base", "padded/final"))
    assert before.shape == (280, 64) and after.shape == (288, 64)
    assert not after[280:].any() and np.abs(after[:280] - before).max() < 0.1


@pytest.mark.slow
def test_on_a_mesh_it_is_the_same_run(home, door):
    """All weights, dropout and targets of unequal length on 1 x 2 x 2 workers: losses to 5e-6, as in training on text.

    The network knows the mesh only by its axes; each worker draws the dropout masks of its own sequences.
    """
    one, four = ([*FULL[:-1], "train.steps=4", f"train.output={name}"] for name in ("one", "four"))
    assert door("train", home, *one)[0] == 0
    command = [sys.executable, ROOT / "run" / "train.py", *four, "parallel.data=2", "parallel.model=2"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=home, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    code, _, err = finish(process)
    assert code == 0, err
    for ours, theirs in zip(rows_of(home / "four"), rows_of(home / "one"), strict=True):
        for name in ("loss", "gradient_norm"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=5e-6), (ours["step"], name)

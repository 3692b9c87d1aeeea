"""Pairs of a prompt and a target: which tokens are learned, which pairs are held out, and which are refused."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from mindspore_palm.config import DataConfig, FinetuneConfig
from mindspore_palm.data import Batches, read_pairs, validation_batches
from mindspore_palm.errors import UserError
from mindspore_palm.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
FINETUNE = FinetuneConfig(checkpoint="runs/some")


def write(folder, records, name="pairs.jsonl"):
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder / name


def pairs_of(count):
    return [{"prompt": f"{n} + {n} =", "target": f" {2 * n}"} for n in range(count)]


def read(file, tokenizer, finetune=FINETUNE, **data):
    return read_pairs(
        DataConfig(path=str(file), **{"seq_len": 32, "validation_fraction": 0.1} | data), finetune, tokenizer
    )


def test_a_row_is_eod_prompt_and_target_and_only_the_target_is_learned(tokenizer, tmp_path):
    prepared = read(write(tmp_path, pairs_of(40)), tokenizer)
    inputs, targets = Batches(prepared.train, 32, tokenizer.eod, [(0, 8)], seed=3).batch(0)
    assert inputs.dtype == targets.dtype == np.int32 and inputs.shape == targets.shape == (8, 32)
    for seen, learned in zip(inputs, targets, strict=True):
        first = int(np.argmax(learned >= 0))  # where the target starts
        count = int((learned >= 0).sum())
        assert (learned[:first] == -1).all() and (learned[first + count :] == -1).all()
        target = learned[first : first + count]
        assert target[-1] == tokenizer.eod and seen[0] == tokenizer.eod
        np.testing.assert_array_equal(seen[first + 1 : first + count], target[:-1])  # predicted from those before
        prompt = tokenizer.decode(seen[1 : first + 1])
        number = int(prompt.split()[0])
        assert prompt == f"{number} + {number} =" and tokenizer.decode(target) == f" {2 * number}"


def test_batches_are_a_function_of_seed_and_step_and_know_their_real_tokens(tokenizer, tmp_path):
    file = write(tmp_path, pairs_of(40))
    one, other = (
        Batches(read(file, tokenizer).train, 32, tokenizer.eod, [(0, 50)], seed=3) for _ in range(2)
    )  # a batch may have more rows than there are pairs: it continues in the next epoch
    for step in (0, 7):
        for a, b in zip(one.batch(step), other.batch(step), strict=True):
            np.testing.assert_array_equal(a, b)
        assert one.real_tokens(step) == (one.batch(step)[1] >= 0).sum()
        parts = [one.slice(step, start, 25)[1] for start in (0, 25)]
        np.testing.assert_array_equal(np.concatenate(parts), one.batch(step)[1])


def test_held_out_pairs_are_no_training_pairs(tokenizer, tmp_path):
    prepared = read(write(tmp_path, pairs_of(200)), tokenizer)
    train, validation = ({p.prompt.tobytes() for p in split.pairs} for split in (prepared.train, prepared.validation))
    assert not train & validation and len(train) + len(validation) == 200 and 8 <= len(validation) <= 40
    scored = [targets for _, targets in validation_batches(prepared.validation, 32, tokenizer.eod, 16)]
    assert sum(int((targets >= 0).sum()) for targets in scored) == len(prepared.validation)


def test_the_numbers_that_the_guide_asks_for_are_held_out(tokenizer, tmp_path):
    """The pairs of docs/fine-tuning.md count to 2,000, and it says of 1409 and 293: "Neither number was trained on"."""
    file = write(tmp_path, [{"prompt": f"after {n} comes ", "target": f"{n + 1}"} for n in range(2000)])
    fraction = load_settings(ROOT / "yaml" / "finetune_lora.yaml")[0].data.validation_fraction
    prepared = read(file, tokenizer, validation_fraction=fraction, seq_len=64)
    assert [len(split.pairs) for split in (prepared.train, prepared.validation)] == [1945, 55]
    held = {tokenizer.decode(pair.prompt) for pair in prepared.validation.pairs}
    trained = {tokenizer.decode(pair.prompt) for pair in prepared.train.pairs}
    for asked in ("after 1409 comes ", "after 293 comes "):
        prompt = asked.rstrip()  # the space at its end is learned with the target
        assert prompt in held and prompt not in trained and asked in (ROOT / "docs" / "fine-tuning.md").read_text()


def test_the_last_of_a_few_pairs_is_held_out(tokenizer, tmp_path):
    prepared = read(write(tmp_path, pairs_of(3)), tokenizer, validation_fraction=1e-9)
    assert [len(split.pairs) for split in (prepared.train, prepared.validation)] == [2, 1]
    assert tokenizer.decode(prepared.validation.pairs[0].prompt) == "2 + 2 ="
    assert "2 pairs" in prepared.summary() and "1 pair," in prepared.summary()


def test_other_fields_an_empty_prompt_and_any_text(tokenizer, tmp_path):
    finetune = FinetuneConfig(checkpoint="runs/some", prompt_field="question", target_field="answer")
    records = [{"question": "", "answer": "漢\u2581\0"}, {"question": "q", "answer": "a", "more": 1}]
    prepared = read(write(tmp_path, records), tokenizer, finetune, validation_fraction=1e-9)
    (pair,) = prepared.train.pairs
    assert len(pair.prompt) == 0 and tokenizer.decode(pair.target) == "漢\u2581\0"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"prompt": "a", "target": "b"}, {"prompt": "a"}], "line 2: there is no field 'target'"),
        ([{"question": "a", "target": "b"}], "set finetune.prompt_field to one of the fields here (question, target)"),
        ([{"prompt": "a", "target": ""}], "line 1: the field 'target' is empty"),
        ([{"prompt": 4, "target": "b"}], "line 1: the field 'prompt' must be a string"),
        (["[1, 2]"], "line 1: expected an object"),
        (["{"], "this is not JSON"),
        ([{"prompt": "a", "target": "b"}], "two pairs or more"),
        ([], "two pairs or more"),
        ([{"prompt": "a", "target": "b"}, {"prompt": "7" * 20, "target": "8" * 20}], "set data.seq_len to 41"),
        ([{"prompt": "a", "target": "\ud800"}] * 2, "lone surrogate"),
    ],
)
def test_bad_pairs_are_refused_in_one_line(tokenizer, tmp_path, records, message):
    with pytest.raises(UserError) as caught:
        read(write(tmp_path, records), tokenizer)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_white_space_before_a_target_is_learned_with_it(tokenizer, tmp_path):
    """On whichever side of the boundary it is written."""
    records = [{"prompt": "if row ", "target": "in x"}, {"prompt": "if row", "target": " in x"}] * 2
    prepared = read(write(tmp_path, records), tokenizer, validation_fraction=1e-9)
    first, second, *_ = prepared.train.pairs
    np.testing.assert_array_equal(first.prompt, second.prompt)
    np.testing.assert_array_equal(first.target, second.target)
    assert list(first.target) == [*tokenizer.encode(" in x"), tokenizer.eod]


def test_a_pair_that_just_fits(tokenizer, tmp_path):
    """20 digits are 20 tokens each, and [eod] is one: 41."""
    records = [{"prompt": "7" * 20, "target": "8" * 20}] * 2
    prepared = read(write(tmp_path, records), tokenizer, seq_len=41)
    _, targets = prepared.train.examples([0], 41, tokenizer.eod)
    assert targets[0, -1] == tokenizer.eod


def test_anything_but_jsonl_is_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"learns from a \.jsonl of pairs"):
        read(write(tmp_path, ["some text"], "pairs.txt"), tokenizer)
    with pytest.raises(UserError, match="nowhere"):
        read(tmp_path / "nowhere.jsonl", tokenizer)


def test_lora_without_a_model_to_adapt():
    with pytest.raises(ValueError, match=r"set finetune\.checkpoint"):
        FinetuneConfig(lora_rank=4)


def test_one_prompt_for_most_pairs_never_holds_most_of_them_out(tokenizer, tmp_path):
    for seed in range(60):  # some of these prompts are held out by their hash
        records = [{"prompt": f"task {seed}:", "target": f" {n}"} for n in range(30)] + pairs_of(10)
        prepared = read(write(tmp_path, records), tokenizer)
        assert 1 <= len(prepared.validation.pairs) <= 20


def test_pairs_are_read_compressed_and_skipped_files_are_listed(tokenizer, tmp_path):
    plain = read(write(tmp_path, pairs_of(40)), tokenizer)
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "pairs.jsonl").read_bytes()))
    (folder / "card.md").write_text("about these pairs")
    compressed = read(folder, tokenizer)
    assert compressed.meta["train"] == plain.meta["train"] and compressed.meta["validation"] == plain.meta["validation"]
    assert compressed.summary().endswith("left out    1 file, 17 bytes, not read: card.md (.md)")
    assert "left out" not in plain.summary()

"""Settings and text that may change when a run resumes, and the errors for those that may not."""

from __future__ import annotations

import argparse
import hashlib

import pytest

from mindspore_palm.config import Settings
from mindspore_palm.data.prepare import Pinned
from mindspore_palm.errors import UserError
from mindspore_palm.settings import load_settings
from mindspore_palm.train import continuation as module
from mindspore_palm.train.continuation import (
    StartOptions,
    check_corpus,
    check_unchanged,
    differences,
    kept_text,
    parse_start_options,
)

FREE = ["train.steps=9", "train.eval_every=3", "train.checkpoint_every=7", "train.keep_last=9", "train.output=b"]
FREE += ["train.micro_batch=4", "train.device=GPU", "train.peak_tflops=3", "data.prepared=b", "train.spike_steps=9"]
FREE += ["parallel.model=2", "parallel.pods=2", "parallel.shard_weights=off", "parallel.recompute=block"]
MATTERS = ["model.layers=9", "model.d_ff=1024", "data.path=b", "data.seq_len=8", "data.validation_fraction=0.5"]
MATTERS += ["train.seed=1", "train.batch_size=8", "train.z_loss=0.0", "optimizer.name=adamw", "optimizer.factored=true"]
MATTERS += ["train.compute_dtype=float16", "data.tokenizer=x", "optimizer.learning_rate=0.5"]


def changed(*overrides):
    return load_settings(None, overrides)[0]


@pytest.mark.parametrize("override", FREE)
def test_settings_that_may_change(override):
    assert differences(Settings(), changed(override)) == {}
    check_unchanged(Settings(), changed(override), StartOptions(), "run")


@pytest.mark.parametrize("override", MATTERS)
def test_settings_that_are_refused_unless_accepted_by_name(override):
    name = override.split("=")[0]
    assert list(differences(Settings(), changed(override))) == [name]
    with pytest.raises(UserError, match=f"{name} was .* and is .* now"):
        check_unchanged(Settings(), changed(override), StartOptions(accept=("train.steps",)), "run")
    check_unchanged(Settings(), changed(override), StartOptions(accept=(name,)), "run")


def test_every_difference_is_shown():
    with pytest.raises(UserError) as caught:
        check_unchanged(
            Settings(), changed("train.seed=4", "data.path=new.txt", "train.eval_every=1"), StartOptions(), "runs/a"
        )
    said = str(caught.value)
    assert said.splitlines()[0] == "runs/a was trained with other settings:"
    assert (
        "\n  train.seed was 0 and is 4 now\n" in said and "\n  data.path was python-stdlib and is new.txt now\n" in said
    )
    assert "--accept data.path --accept train.seed" in said and "eval_every" not in said


def test_a_preset_is_its_sizes():
    same = {"layers": 4, "d_model": 128, "heads": 4, "head_dim": 32, "d_ff": 512, "vocab_size": 4096}
    written, named = (Settings.model_validate({"model": model}) for model in (same, {"preset": "palm_tiny"}))
    assert differences(written, named) == {}


def test_steps_matter_where_the_rate_depends_on_them():
    cosine = changed("optimizer.schedule=cosine")
    longer = changed("optimizer.schedule=cosine", "train.steps=2000")
    assert differences(cosine, longer) == {"train.steps": (1000, 2000)}


def fingerprint_of(**changes):
    parts = {"documents": 9, "bytes": 90, "tokens": 45, "sha256": "a1"}
    return {
        "tokenizer": "t0",
        "train": {**parts, **changes},
        "validation": {"documents": 1, "bytes": 9, "tokens": 5, "sha256": "b1"},
        "gzip9_bits_per_byte": 2.5,
    }


def old(fingerprint):
    """As earlier versions wrote it: counts alone."""
    return {
        k: {n: v for n, v in p.items() if n != "sha256"} if isinstance(p, dict) else p for k, p in fingerprint.items()
    }


def test_the_same_text_is_recognized_wherever_it_is_stored():
    check_corpus({}, fingerprint_of(), StartOptions(), Settings())
    check_corpus(fingerprint_of(), fingerprint_of(), StartOptions(), changed("data.path=moved"))
    check_corpus(old(fingerprint_of()), fingerprint_of(), StartOptions(), Settings())


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (
            fingerprint_of(),
            fingerprint_of(sha256="a2"),
            "train has as many tokens as before, but other ones or in another",
        ),
        (fingerprint_of(), fingerprint_of(tokens=46, sha256="a2"), "train had 45 tokens and has 46 now"),
        (old(fingerprint_of()), fingerprint_of(bytes=91), "train had 90 bytes and has 91 now"),
        (
            {"tokenizer": "a", "train": {"tokens": 4}},
            {"tokenizer": "a", "train": {"tokens": 5}},
            "had 4 tokens and has 5",
        ),
        (
            fingerprint_of(),
            {**fingerprint_of(), "gzip9_bits_per_byte": 3.5},
            "gzip9_bits_per_byte was 2.5 and is 3.5 now",
        ),
    ],
)
def test_another_text_is_refused_unless_the_text_itself_is_accepted(before, now, said):
    for accept in ((), ("data.path",), ("train.seed", "data.text_field")):
        with pytest.raises(UserError, match="its text changed since the run began") as caught:
            check_corpus(before, now, StartOptions(accept=accept), Settings())
        assert said in str(caught.value) and "--accept data.content" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    check_corpus(before, now, StartOptions(accept=("data.content",)), Settings())


def test_another_tokenizer_is_refused_whatever_is_accepted_of_the_text():
    now = {**fingerprint_of(tokens=50, sha256="a2"), "tokenizer": "t1"}
    for accept in ((), ("data.path",), ("data.content",)):
        with pytest.raises(UserError, match="not the tokenizer that the run started with"):
            check_corpus(fingerprint_of(), now, StartOptions(accept=accept), Settings())
    check_corpus(fingerprint_of(), now, StartOptions(accept=("data.tokenizer",)), Settings())
    other = {**fingerprint_of(bytes=99), "tokenizer": "t1"}
    with pytest.raises(UserError, match="train had 90 bytes and has 99 now"):
        check_corpus(fingerprint_of(), other, StartOptions(accept=("data.tokenizer",)), Settings())


class StoredCheckpoint:
    """A checkpoint with nothing but its state."""

    corpus = fingerprint_of()

    def __init__(self, folder):
        self.folder, self.state = folder, {"corpus": self.corpus}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Stores a checkpoint with a fingerprint in the folder of a run."""

    def store(corpus, tokenizer=b"a tokenizer"):
        step = tmp_path / "checkpoints" / "step_000005"
        step.mkdir(parents=True, exist_ok=True)
        (step / "manifest.json").touch()
        (step / "tokenizer.model").write_bytes(tokenizer)
        monkeypatch.setattr(StoredCheckpoint, "corpus", corpus)
        monkeypatch.setattr(module, "Checkpoint", StoredCheckpoint)
        monkeypatch.setattr(module, "steps_in", lambda _: [5])
        return tmp_path

    return store


def test_a_moved_text_is_accepted_if_its_content_is_known(stored):
    moved = changed("data.path=moved", "data.tokenizer=x", "data.text_field=body")
    check_unchanged(Settings(), moved, StartOptions(), stored(fingerprint_of()))
    with pytest.raises(UserError, match=r"train\.seed was 0 and is 1 now"):
        check_unchanged(
            Settings(), changed("data.path=moved", "train.seed=1"), StartOptions(), stored(fingerprint_of())
        )
    with pytest.raises(UserError, match=r"data\.path was python-stdlib and is moved now"):
        check_unchanged(Settings(), moved, StartOptions(), stored(old(fingerprint_of())))  # only counts


def test_a_run_keeps_the_tokenizer_of_its_checkpoints(stored, tmp_path):
    assert kept_text(tmp_path) is None
    known = {**fingerprint_of(), "tokenizer": hashlib.sha256(b"a tokenizer").hexdigest()}
    assert kept_text(stored(known)) == Pinned(b"a tokenizer")
    assert kept_text(stored(old(known))) == Pinned(b"a tokenizer", any_share=True)
    assert kept_text(stored({**known, "any_share": True})) == Pinned(b"a tokenizer", any_share=True)
    assert kept_text(stored(known, b"altered")) is None


def parse(**given):
    nothing = {"overwrite": False, "accept": [], "rewind_to": None, "skip_batches": None, "max_restarts": 0}
    return parse_start_options(argparse.Namespace(**{**nothing, **given}))


def test_arguments():
    assert parse(accept=["data.content"]).accept == ("data.content",)
    start = parse(accept=["data.path"], rewind_to=200, skip_batches="200:400", max_restarts=3)
    assert start == StartOptions(False, ("data.path",), 200, (200, 400), 3)
    assert start.asked == "--rewind-to 200 --skip-batches 200:400"
    assert (parse().asked, parse(rewind_to=0).asked) == ("", "--rewind-to 0")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"accept": ["data.pth"]}, "--accept data.pth: there is no such setting"),
        ({"accept": ["seed"]}, "--accept seed"),
        ({"rewind_to": -1}, "--rewind-to -1"),
        ({"max_restarts": -2}, "--max-restarts -2"),
        ({"skip_batches": "7"}, "write FROM:TO"),
        ({"skip_batches": "9:9"}, "write FROM:TO"),
        ({"skip_batches": "a:b"}, "write FROM:TO"),
    ],
)
def test_invalid_arguments(given, said):
    with pytest.raises(UserError, match=said):
        parse(**given)

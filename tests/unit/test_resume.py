"""What may change between a checkpoint and the run that goes on from it, and how that is said."""

from __future__ import annotations

import argparse

import pytest

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.settings import load_settings
from mindspore_palm.train.resume import Start, check_corpus, check_same, differences, start_from

FREE = ["train.steps=9", "train.eval_every=3", "train.checkpoint_every=7", "train.keep_last=9", "train.output=b"]
FREE += ["train.micro_batch=4", "train.device=GPU", "train.peak_tflops=3", "data.prepared=b", "train.spike_steps=9"]
FREE += ["parallel.model=2", "parallel.pods=2", "parallel.shard_weights=off", "parallel.recompute=block"]
MATTERS = ["model.layers=9", "model.d_ff=1024", "data.path=b", "data.seq_len=8", "data.validation_fraction=0.5"]
MATTERS += ["train.seed=1", "train.batch_size=8", "train.z_loss=0.0", "optimizer.name=adamw", "optimizer.factored=true"]
MATTERS += ["train.compute_dtype=float16", "data.tokenizer=x", "optimizer.learning_rate=0.5"]


def changed(*overrides):
    return load_settings(None, overrides)[0]


@pytest.mark.parametrize("override", FREE)
def test_what_may_change(override):
    assert differences(Settings(), changed(override)) == {}
    check_same(Settings(), changed(override), Start(), "run")


@pytest.mark.parametrize("override", MATTERS)
def test_what_is_refused_unless_it_is_accepted_by_name(override):
    name = override.split("=")[0]
    assert list(differences(Settings(), changed(override))) == [name]
    with pytest.raises(UserError, match=f"{name} was .* and is .* now"):
        check_same(Settings(), changed(override), Start(accept=("train.steps",)), "run")
    check_same(Settings(), changed(override), Start(accept=(name,)), "run")


def test_every_difference_is_shown():
    with pytest.raises(UserError) as caught:
        check_same(Settings(), changed("train.seed=4", "data.path=new.txt", "train.eval_every=1"), Start(), "runs/a")
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


def test_another_text_of_the_same_name():
    before, now = {"tokenizer": "a", "train": {"tokens": 4}}, {"tokenizer": "a", "train": {"tokens": 5}}
    check_corpus({}, now, Start(), Settings())
    check_corpus(now, now, Start(), Settings())
    check_corpus(before, now, Start(accept=("data.path",)), Settings())
    with pytest.raises(UserError, match="its text changed since the run began"):
        check_corpus(before, now, Start(), Settings())


def parse(**given):
    nothing = {"overwrite": False, "accept": [], "rewind_to": None, "skip_batches": None, "max_restarts": 0}
    return start_from(argparse.Namespace(**{**nothing, **given}))


def test_arguments():
    start = parse(accept=["data.path"], rewind_to=200, skip_batches="200:400", max_restarts=3)
    assert start == Start(False, ("data.path",), 200, (200, 400), 3)
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
def test_arguments_that_make_no_sense(given, said):
    with pytest.raises(UserError, match=said):
        parse(**given)

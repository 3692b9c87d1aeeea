"""One compilation for all seeds and rates gives the bits of a step that is built for one run alone."""

from __future__ import annotations

import numpy as np
import pytest
from study.small import small, write_study

from mindspore_palm.data import Batches
from mindspore_palm.study.costs import state_bytes
from mindspore_palm.study.file import read_study
from mindspore_palm.study.trainer import Trainer, open_text
from mindspore_palm.study.turns import in_turns
from mindspore_palm.train.build import build_step
from mindspore_palm.train.evaluate import Evaluator


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = small()
    values["settings"]["optimizer"] = {"schedule": "cosine", "warmup_steps": 2}
    return read_study(write_study(tmp_path, values))


def test_a_network_that_is_trained_again_gives_the_bits_of_a_new_one(device, study):
    """The second run of a trainer, with another seed and rate, against a step that was built for them alone."""
    prepared = open_text(study.settings_of("palm", "a"))
    trainer = Trainer(study.settings_of("palm", "a"), prepared)
    first = trainer.run(0, 0.01)
    again = trainer.run(3, 0.04, (2,))
    assert trainer.run(0, 0.01) == first

    settings = study.settings_of("palm", "a", rate=0.04, seed=3)
    palm, step = build_step(settings)
    batches = Batches(prepared.train, 16, prepared.tokenizer.eod, settings.train.batch_ramp(), 3)
    losses = [step(*batches.slice(k, 0, 4)).cross_entropy for k in range(5)]
    held_out = Evaluator(palm, prepared.tokenizer.piece_bytes)(trainer._held_out(16, 4))
    assert [point[1] for point in again.curve] == losses
    assert (again.loss, again.bits_per_byte) == (held_out.nats_per_token, held_out.bits_per_byte)
    assert np.mean(again.beyond["1"]) == pytest.approx(again.loss, rel=1e-5) and len(again.beyond["2"]) == 8
    moments = [p for p in step.state if p.name.startswith(("m.", "v."))]
    assert sum(p.asnumpy().nbytes for p in moments) == state_bytes(settings)


def test_contenders_take_turns_and_the_first_one_changes():
    calls = []
    medians = in_turns([lambda: calls.append("a"), lambda: calls.append("b")], rounds=2, steps=2)
    assert "".join(calls[6:]) == "aabb" + "bbaa" and [len(turns) for turns in medians] == [2, 2]

"""Resuming is bitwise exact with every optimizer: a checkpoint holds all moments that it declares."""

from __future__ import annotations

import pytest
from checkpoints.command import rows_of
from checkpoints.in_process import trainer, write_text
from safetensors.numpy import load_file

from mindspore_palm.optim import OPTIMIZERS


@pytest.mark.parametrize("setting", [*(f"name={name}" for name in OPTIMIZERS), "factored=true"])
def test_a_resumed_run_has_the_same_bits(device, tmp_path, monkeypatch, capsys, setting):
    write_text(tmp_path)
    train = trainer(tmp_path, monkeypatch, capsys)
    words = [f"optimizer.{setting}", "optimizer.learning_rate=0.001", "train.checkpoint_every=4"]
    for output, ends in (("straight", (8,)), ("resumed", (4, 8))):
        for steps in ends:
            code, _, err = train(output, *words, f"train.steps={steps}")
            assert code == 0, err
    straight, resumed = (
        load_file(tmp_path / name / "checkpoints" / "step_000008" / "rank_0.safetensors")
        for name in ("straight", "resumed")
    )
    assert straight.keys() == resumed.keys() and "m.embedding" in straight
    assert all(straight[name].tobytes() == resumed[name].tobytes() for name in straight)
    losses = [
        [(row["loss"], row["gradient_norm"]) for row in rows_of(tmp_path / name)] for name in ("straight", "resumed")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 8

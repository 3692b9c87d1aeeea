"""Resuming is bitwise exact with every optimizer, and in float16: a checkpoint holds moments and loss scale."""

from __future__ import annotations

from itertools import pairwise

import pytest
from checkpoints.command import rows_of
from checkpoints.in_process import trainer, write_text
from safetensors.numpy import load_file

from mindspore_palm.optim import OPTIMIZERS

# overflows in the first steps, and doubles after each second step without overflow
FLOAT16 = ["train.compute_dtype=float16", "train.loss_scale=8388608", "train.loss_scale_window=2"]
SETTINGS = [[f"optimizer.name={name}"] for name in OPTIMIZERS]
SETTINGS += [["optimizer.factored=true"], ["optimizer.name=adamw", *FLOAT16]]
SETTINGS = [
    pytest.param(
        one, id="float16" if FLOAT16[0] in one else one[-1], marks=() if "adamw" in one[0] else pytest.mark.slow
    )
    for one in SETTINGS
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_resumed_run_has_the_same_bits(device, tmp_path, monkeypatch, capsys, settings):
    write_text(tmp_path)
    train = trainer(tmp_path, monkeypatch, capsys)
    words = [*settings, "optimizer.learning_rate=0.001", "train.checkpoint_every=4"]
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
    columns = ("loss", "gradient_norm", "loss_scale", "skipped")
    rows = [[[row[c] for c in columns] for row in rows_of(tmp_path / name)] for name in ("straight", "resumed")]
    assert rows[0] == rows[1] and len(rows[0]) == 8
    scales = [scale for _, _, scale, _ in rows[0]]
    if "train.compute_dtype=float16" not in settings:
        assert set(scales) == {""}
    else:
        steps = [float(b) / float(a) for a, b in pairwise(scales)]
        assert {0.5, 2.0} <= set(steps), scales

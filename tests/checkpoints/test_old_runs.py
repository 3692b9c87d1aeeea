"""A run written by version 0.1.0 (tests/data/run_0.1.0) is resumed by this version, and its model opens.

``run/`` was trained for 12 of 20 steps; ``after/`` is the result of the other eight with version 0.1.0.
The text is synthetic: common English words in random order.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import command
from safetensors.numpy import load_file

import mindspore_palm
from mindspore_palm.checkpoint.model_folder import load_tokenizer

OLD = Path(__file__).parents[1] / "data" / "run_0.1.0"
SIZES = ["model.layers=2", "model.d_model=16", "model.heads=2", "model.head_dim=8", "model.d_ff=32"]
SIZES += ["model.vocab_size=300", "data.seq_len=16", "train.batch_size=4", "train.eval_every=10"]
SIZES += ["train.checkpoint_every=6", "train.keep_last=9", "train.peak_tflops=1", "data.validation_fraction=0.1"]
ROUNDING = 1e-5  # other processors add in another order


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    home = tmp_path_factory.mktemp("old")
    shutil.copytree(OLD / "run", home / "run")
    shutil.copy(OLD / "text.jsonl", home)
    paths = ["data.path=text.jsonl", "data.prepared=prepared", "train.output=run"]  # relative, as when it was written
    words = [sys.executable, str(command.ROOT / "run" / "train.py"), *SIZES, *paths, "train.steps=20"]
    done = subprocess.run(words, cwd=home, capture_output=True, text=True, timeout=command.LIMIT)
    assert done.returncode == 0, done.stderr + done.stdout
    return home / "run", done.stdout


def test_an_old_run_resumes_from_its_checkpoint(resumed):
    assert "from step 12" in resumed[1]


def test_an_old_run_ends_with_the_weights_that_its_own_version_gave(resumed):
    ours, theirs = (load_file(path / "model.safetensors") for path in (resumed[0] / "final", OLD / "after"))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        np.testing.assert_allclose(ours[name], weight, rtol=ROUNDING, atol=ROUNDING, err_msg=name)


def test_an_old_run_ends_with_the_losses_that_its_own_version_gave(resumed):
    ours, theirs = (command.rows_of(folder) for folder in (resumed[0], OLD / "after"))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(float(row["loss"]), float(expected["loss"]), rtol=ROUNDING)


def test_an_old_model_opens(device):
    palm = mindspore_palm.load(OLD / "run" / "final")
    expected = load_file(OLD / "run" / "final" / "model.safetensors")
    assert sum(weight.size for weight in palm.get_parameters()) == sum(weight.size for weight in expected.values())
    assert load_tokenizer(OLD / "run" / "final").vocab_size == 300

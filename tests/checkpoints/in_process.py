"""The training command inside the test process, for tests that start it often."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mindspore_palm.errors import run_command

COMMAND = Path(__file__).resolve().parents[2] / "run" / "train.py"
SIZES = ["model.layers=1", "model.d_model=16", "model.heads=2", "model.head_dim=8", "model.d_ff=32"]
SIZES += ["model.vocab_size=300", "data.seq_len=16", "train.batch_size=4", "train.device=CPU", "train.peak_tflops=1"]
SIZES += ["train.eval_every=0", "train.checkpoint_every=5"]
Train = Callable[..., tuple[int, str, str]]


def write_text(home: Path) -> None:
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 8))) for _ in range(200)]
    (home / "text.txt").write_text("\n".join(" ".join(draw.choices(words, k=10)) for _ in range(600)))


def main_of(script: Path) -> Callable[[], None]:
    spec = importlib.util.spec_from_file_location("run_train", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def trainer(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Train:
    """A function ``train(output, *arguments)`` that returns exit code, standard output and standard error."""
    main = main_of(COMMAND)

    def train(output: str | Path, *arguments: str) -> tuple[int, str, str]:
        paths = [
            f"data.path={home / 'text.txt'}",
            f"data.prepared={home / 'prepared'}",
            f"train.output={home / output}",
        ]
        monkeypatch.setattr(sys, "argv", ["train.py", *SIZES, *paths, *arguments])
        capsys.readouterr()
        code = run_command(main)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return train


def state_of(folder: Path, step: int) -> dict:
    return json.loads((folder / "checkpoints" / f"step_{step:06d}" / "state.json").read_text())

"""float16 on a mesh: every worker, and one process, scale the loss alike."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints.in_process import SIZES

ROOT = Path(__file__).resolve().parents[2]
WORDS = [*SIZES, "data.path=LICENSE", "train.steps=8", "train.compute_dtype=float16"]
WORDS += ["optimizer.name=adamw", "optimizer.learning_rate=0.001"]
WORDS += ["train.loss_scale=8388608", "train.loss_scale_window=2"]  # overflows first, and doubles later


def rows(home: Path, name: str, *mesh: str) -> list[dict[str, str]]:
    words = [*WORDS, f"data.prepared={home}/prepared", f"train.output={home}/{name}", *mesh]
    ended = subprocess.run([sys.executable, "run/train.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with open(home / name / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_mesh_has_the_same_scales(tmp_path):
    """Losses to 1e-3: 2^-11 for each rounding, summed in another order."""
    one, several = rows(tmp_path, "one"), rows(tmp_path, "several", "parallel.model=2")
    scales, skipped = ([[row[name] for row in table] for table in (one, several)] for name in ("loss_scale", "skipped"))
    assert scales[0] == scales[1] and skipped[0] == skipped[1]
    assert "1" in skipped[0] and len(set(scales[0])) > 2
    for ours, theirs in zip(one, several, strict=True):
        assert float(theirs["loss"]) == pytest.approx(float(ours["loss"]), rel=1e-3)

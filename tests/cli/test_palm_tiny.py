"""The main job, whole: the README's command learns more about the text than gzip knows."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_palm_tiny_beats_gzip(tmp_path):
    command = [sys.executable, "run/train.py", "--config", "yaml/palm_tiny.yaml"]
    places = [f"train.output={tmp_path / 'run'}", f"data.prepared={tmp_path / 'prepared'}"]
    run = subprocess.run([*command, *places], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr[-2000:]
    ours = float(re.search(r"held out, all .* nats/token, ([\d.]+) bits/byte\n", run.stdout).group(1))
    gzip = float(re.search(r"gzip -9 on the same text: ([\d.]+) bits/byte", run.stdout).group(1))
    assert ours < gzip
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert len(rows) == 1500 and sum(float(row["seconds"]) for row in rows) < 600
    assert not any(int(row["skipped"]) for row in rows)

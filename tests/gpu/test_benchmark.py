"""benchmarks/gpu.py runs, and says in a sentence where it cannot."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_gpu_it_is_one_sentence(gpu):
    ended = gpu("benchmarks/gpu.py", STANDIN_DEVICES="0")
    assert ended.returncode == 2 and ended.stdout == ""
    assert re.fullmatch(r"error: --device = GPU: its NVIDIA driver finds no GPU; .*\n", ended.stderr)


@pytest.mark.torch
def test_the_table_of_all_contenders(tmp_path):
    """On the CPU, where it is of no interest but the same code."""
    words = ["--device", "CPU", "--shapes", "64x1x2x32x256x32x2", "--dtypes", "float32,float16"]
    words += ["--rounds", "1", "--steps", "1", "--json", tmp_path / "results.json"]
    command = [sys.executable, "benchmarks/gpu.py", *map(str, words)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    for table in results["steps"]:
        assert set(table["figures"]) == {"mindspore_palm", "torch.compile", "jax"}
        assert all(row["tokens_per_second"] > 0 for row in table["figures"].values())
    assert results["losses"]["float32"]["largest_relative_difference"] == 0
    assert 0 < results["losses"]["float16"]["largest_relative_difference"] < 0.02

"""A package that is installed, and that nothing here needs, is not imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindspore_palm.modules import without

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
import mindspore_palm.cli.train, mindspore_palm.train.loop
import mindspore_palm.generate.command, mindspore_palm.evaluate.evaluate
print("imported" if "torch" in sys.modules else "not imported")
import torch
"""


def test_training_does_not_import_torch(tmp_path):
    (tmp_path / "torch.py").write_text("print('here is torch')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["not imported", "here is torch"]


def test_a_module_is_missing_only_inside(tmp_path, monkeypatch):
    (tmp_path / "large.py").write_text("size = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with without("large"), pytest.raises(ImportError):
        import large
    import large

    with without("large"):
        import large

        assert large.size == 1
    del sys.modules["large"]

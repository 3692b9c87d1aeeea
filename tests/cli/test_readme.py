"""The README's Python runs as it stands, in an interpreter of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mindspore_palm import PaLM, Tokenizer
from mindspore_palm.checkpoint.model_folder import save_model, weights_of
from mindspore_palm.config import Settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def final(device, tmp_path_factory):
    """A folder as a finished run leaves it."""
    folder = tmp_path_factory.mktemp("run")
    words = (f"import os{i}\ndef f{i}(a, b):\n    return a + {i} * b\n" for i in range(400))
    tokenizer = Tokenizer.train(words, 320, folder / "tokenizer.model")
    sizes = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 8, "d_ff": 32, "vocab_size": 320}
    settings = Settings.model_validate({"model": sizes})
    save_model(folder / "final", weights_of(PaLM(settings.model)), tokenizer.serialized, settings, step=1)
    return folder / "final"


def test_python_of_the_readme(final):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        code = block.replace("runs/palm_tiny/final", str(final))
        shows_logits = "logits = " in block
        if shows_logits:
            code += "\nprint(logits.shape, logits.dtype)\n"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
        assert run.returncode == 0, run.stderr[-1500:]
        assert run.stdout
        assert not shows_logits or re.fullmatch(r"\(1, \d+, 320\) Float32\n", run.stdout), run.stdout
        assert "Traceback" not in run.stderr

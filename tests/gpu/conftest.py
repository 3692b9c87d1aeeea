"""The stand-in for a GPU, built once, and processes that see it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gpu import standin

from mindspore_palm.native import with_interpreter

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("gcc", "nm")


@pytest.fixture(scope="session")
def gpu(tmp_path_factory):
    """Runs this Python with arguments on a machine that seems to have a GPU: to a completed process."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"there is no {missing[0]} to build the stand-in for a GPU with")
    variables = standin.build(tmp_path_factory.mktemp("gpu"))

    def python(*arguments, timeout: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([variables["PYTHONPATH"], str(ROOT), str(ROOT / "tests")])
        environment = {**os.environ, **variables, "PYTHONPATH": path, "PATH": with_interpreter(os.environ.get("PATH"))}
        environment |= {name: value.format(**variables) for name, value in more.items()}
        words = [sys.executable, *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=environment, cwd=ROOT)

    return python

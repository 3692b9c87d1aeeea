"""Commands in this process: what a process of its own would take seconds to start."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from mindspore_palm.errors import run_command
from mindspore_palm.launch.interrupts import Interrupts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def door(monkeypatch, capsys):
    """Runs run/{name}.py in a folder: gives exit code, standard output and standard error."""

    monkeypatch.setattr(Interrupts, "listen", lambda _: None)  # Ctrl-C stays pytest's

    def run(name, folder, *arguments):
        spec = importlib.util.spec_from_file_location(f"run_{name}", ROOT / "run" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        code = run_command(module.main)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run

"""Commands that need no network do not wait for MindSpore, whose import takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(path.stem for path in (ROOT / "run").glob("*.py") if path.stem not in ("harness", "checkout"))
"""The first has a help of its own, and the second is what the others share."""


def ran(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """A command for which MindSpore ends the process as soon as it is imported."""
    (folder / "mindspore.py").write_text("raise SystemExit('MindSpore was imported')\n")
    return subprocess.run(
        [sys.executable, str(ROOT / "run" / f"{command[0]}.py"), *command[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_without_mindspore(tmp_path, command):
    done = ran(tmp_path, command, "--help")
    assert done.returncode == 0 and "usage:" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train train.stepz=1", "train.stepz"),
        ("train train.steps=-1", "train.steps = -1"),
        ("train --config nowhere.yaml", "nowhere.yaml"),
        ("dry_run parallel.dita=2", "parallel.dita"),
        ("generate --checkpoint nowhere text", "there is no folder nowhere"),
        ("generate --checkpoint .", "there is no prompt"),
        ("generate --checkpoint . text --temperature -1", "--temperature -1.0"),
        ("generate --checkpoint . --prompt-file nowhere.txt", "nowhere.txt"),
        ("evaluate --checkpoint nowhere --data a.txt", "there is no folder nowhere"),
    ],
)
def test_an_error_in_the_command_line_is_told_without_mindspore(tmp_path, command, message):
    done = ran(tmp_path, *command.split())
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and done.stderr.startswith("error: ")


def test_a_run_imports_mindspore(tmp_path):
    assert "MindSpore was imported" in ran(tmp_path, "train", "train.steps=1").stderr

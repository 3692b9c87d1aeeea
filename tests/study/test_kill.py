"""SIGKILL at any moment of a study, with its real networks: the same command ends with the same results.json."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from study.small import small, write_study

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
KILLED_AFTER = (0, 1, 3)  # results on disk


def command(folder, output):
    return [sys.executable, str(ROOT / "run" / "study.py"), str(folder / "small.yaml"), "--output", str(output)]


def results_of(output):
    found = json.loads((output / "results.json").read_text())
    found.pop("times")
    return found


def finished(output):
    return len(list((output / "runs").glob("*.json"))) if (output / "runs").is_dir() else 0


def test_killed_at_several_moments_it_ends_with_the_same_results(tmp_path):
    values = small(fit=None, seeds=[0, 1], comparisons=small()["comparisons"][:3])
    values["comparisons"][0]["sizes"] = ["a"]
    write_study(tmp_path, values)
    done = subprocess.run(command(tmp_path, tmp_path / "at once"), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    output = tmp_path / "killed"
    for count in KILLED_AFTER:
        process = subprocess.Popen(command(tmp_path, output), cwd=tmp_path, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while finished(output) < count or not (output / "runs").is_dir():  # 0: while it compiles its first network
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        jobs = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not psutil.wait_procs(jobs, timeout=20)[1]
        assert not (output / "results.json").exists()
    before = {file.name: file.stat().st_mtime_ns for file in (output / "runs").glob("*.json")}
    done = subprocess.run(command(tmp_path, output), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert results_of(output) == results_of(tmp_path / "at once")
    after = {file.name: file.stat().st_mtime_ns for file in (output / "runs").glob("*.json")}
    assert before.items() <= after.items()  # nothing was done twice

"""The memory that a run says it needs is the memory that its process takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mindspore_palm.cost.memory import readable

ROOT = Path(__file__).resolve().parents[2]
SHARE = 0.2
UNITS = {"MB": 1e6, "GB": 1e9}
LARGER = ["d_model=512", "layers=8", "heads=8", "head_dim=64", "d_ff=2048"]  # 32 million parameters
LARGEST = ["d_model=1024", "layers=20", "heads=8", "head_dim=128", "d_ff=4096"]  # 303 million
RUNS = {
    "palm_tiny": ["train.steps=20", "train.eval_every=10", "train.checkpoint_every=10"],
    "larger": ["train.steps=2", "train.batch_size=4", *(f"model.{size}" for size in LARGER)],
    "largest": [
        "train.steps=2",
        "train.batch_size=2",
        "data.validation_fraction=0.002",
        *(f"model.{size}" for size in LARGEST),
    ],
}


def peak_of(process, interval=0.05):
    """The largest VmHWM among a process and its children: the launcher's child trains. Returns when it ends."""
    peak = 0
    while process.poll() is None:
        for each in (parent := psutil.Process(process.pid), *parent.children(recursive=True)):
            try:
                status = Path(f"/proc/{each.pid}/status").read_text()
            except OSError:
                continue
            if name := re.search(r"^Name:\s+python", status, re.M) and re.search(r"^VmHWM:\s+(\d+) kB", status, re.M):
                peak = max(peak, int(name.group(1)) * 1024)
        time.sleep(interval)
    return peak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("in_cpp", ["1", "0"])
@pytest.mark.parametrize("run", RUNS)
def test_the_estimate_is_the_peak_within_a_fifth(run, in_cpp, tmp_path):
    places = [f"train.output={tmp_path / 'run'}", f"data.prepared={tmp_path / 'prepared'}"]
    command = [sys.executable, "run/train.py", "--config", "yaml/palm_tiny.yaml", *places, *RUNS[run]]
    log = tmp_path / "log"
    with log.open("w") as out:
        environment = {**os.environ, "MINDSPORE_PALM_FUSED": in_cpp}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
        peak = peak_of(process)
    text = log.read_text()
    assert process.returncode == 0, text[-2000:]
    number, unit = re.search(r"^  memory +about ([\d.]+) (\wB) \(", text, re.M).groups()
    estimate = float(number) * UNITS[unit]
    said = re.search(r"^memory: (.*) at the peak, estimated at (.*)$", text, re.M)
    print(
        f"{run}, MINDSPORE_PALM_FUSED={in_cpp}: estimated {readable(estimate)}, peak {readable(peak)}; {said.group()}"
    )
    assert estimate == pytest.approx(peak, rel=SHARE)
    assert said.group(2) == f"{number} {unit}"
    number, unit = said.group(1).split()
    assert float(number) * UNITS[unit] == pytest.approx(peak, rel=0.06)  # the last chart is drawn after it is printed

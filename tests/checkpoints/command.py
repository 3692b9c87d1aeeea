"""The training command in processes of its own: started, killed with all that belongs to it, and compared."""

from __future__ import annotations

import contextlib
import csv
import random
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SIZES = ["model.vocab_size=512", "model.d_model=32", "model.layers=1", "model.heads=2", "model.head_dim=16"]
SIZES += ["model.d_ff=64", "data.seq_len=32", "train.batch_size=8", "train.peak_tflops=1", "train.device=CPU"]
TIMES = ("seconds", "tokens_per_second", "mfu")  # columns that no two runs share
LIMIT = 240  # seconds for a command


def write_text(home: Path) -> Path:
    """A folder with a text that has something to learn: words of unequal frequency."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(300)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    lines = (" ".join(draw.choices(words, weights, k=12)) for _ in range(4000))
    (home / "text.txt").write_text("\n".join(lines))
    return home


def start(home: Path, output: str, *more: str, script: Path = ROOT / "run" / "train.py", **options) -> subprocess.Popen:
    places = [f"data.path={home / 'text.txt'}", f"data.prepared={home / 'prepared'}", f"train.output={home / output}"]
    command = [sys.executable, str(script), *SIZES, *places, *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **options)


def finish(process: subprocess.Popen, limit: float = LIMIT) -> tuple[int, str, str]:
    """Exit code and what it said; nothing of it is left."""
    try:
        out, err = process.communicate(timeout=limit)
    finally:
        kill(process)
    return process.returncode, out, err


def run(home: Path, output: str, *more: str, **options) -> str:
    """A command that must end well; what it said."""
    code, out, err = finish(start(home, output, *more, **options))
    assert code == 0, err[-2000:] + out[-2000:]
    assert "Traceback" not in err
    return out


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """A command and all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    return []


def workers(process: subprocess.Popen) -> dict[str, psutil.Process]:
    """The workers of a command by their number."""
    found = {}
    for member in family(process):
        with contextlib.suppress(psutil.Error):
            environment: Mapping[str, str] = member.environ()
            if environment.get("MS_ROLE") == "MS_WORKER":
                found[environment["RANK_ID"]] = member
    return found


def kill(process: subprocess.Popen) -> None:
    """SIGKILL for a command and all that it has started."""
    members = family(process)
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(members, timeout=30)


def wait_for_rows(
    process: subprocess.Popen, folder: Path, rows: int = 1, behind: int = 0, limit: float = LIMIT
) -> None:
    """Returns when a run that goes on from step ``behind`` has written rows: old ones are cut before it compiles."""
    end, cut = time.monotonic() + limit, False
    while not cut or len(lines_of(folder)) <= behind + rows:
        cut = cut or len(lines_of(folder)) <= behind + 1
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no {rows} rows behind step {behind} in time"
        time.sleep(0.02)


def lines_of(folder: Path) -> list[str]:
    file = folder / "metrics.csv"
    return file.read_text().splitlines() if file.exists() else []


def rows_of(folder: Path) -> list[dict[str, str]]:
    """metrics.csv, times aside."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return [{name: text for name, text in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def checkpoints_of(folder: Path) -> list[int]:
    """Steps of the checkpoints that are there, rising."""
    names = [path.name for path in (folder / "checkpoints").glob("step_*")]
    return sorted(int(name.removeprefix("step_")) for name in names if re.fullmatch(r"step_\d+", name))


def same_bits(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs: rows of metrics.csv, the model, slices of weights and optimizer state."""
    ours, theirs = rows_of(one), rows_of(other)
    different = [f"row {a['step']}: {a} {b}" for a, b in zip(ours, theirs, strict=False) if a != b][:3]
    if len(ours) != len(theirs):
        different.append(f"{len(ours)} and {len(theirs)} rows")
    newest = f"checkpoints/step_{checkpoints_of(one)[-1]:06d}"
    slices = [f"{newest}/{path.name}" for path in (one / newest).glob("rank_*.safetensors")]
    assert slices
    files = ["final/model.safetensors", *slices]
    return different + [name for name in files if (one / name).read_bytes() != (other / name).read_bytes()]

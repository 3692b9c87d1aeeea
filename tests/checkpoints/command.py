"""The training command in its own processes: start it, kill it with its descendants, compare two runs."""

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
TIMES = ("seconds", "tokens_per_second", "mfu", "hfu")  # columns that differ in every run
LIMIT = 240  # seconds for a command


def write_text(home: Path) -> Path:
    """Writes a text with something to learn, words of unequal frequency, into a folder."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(300)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    lines = (" ".join(draw.choices(words, weights, k=12)) for _ in range(4000))
    (home / "text.txt").write_text("\n".join(lines))
    return home


def start(home: Path, output: str, *more: str, script: Path = ROOT / "run" / "train.py", **options) -> subprocess.Popen:
    paths = [f"data.path={home / 'text.txt'}", f"data.prepared={home / 'prepared'}", f"train.output={home / output}"]
    command = [sys.executable, str(script), *SIZES, *paths, *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **options)


def finish(process: subprocess.Popen, limit: float = LIMIT) -> tuple[int, str, str]:
    """Waits for a command; returns exit code, standard output and standard error. No process is left."""
    try:
        out, err = process.communicate(timeout=limit)
    finally:
        kill(process)
    return process.returncode, out, err


def run(home: Path, output: str, *more: str, **options) -> str:
    """Runs a command that must succeed; returns its output."""
    code, out, err = finish(start(home, output, *more, **options))
    assert code == 0, err[-2000:] + out[-2000:]
    assert "Traceback" not in err
    return out


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """A command's process and all its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    return []


def workers(process: subprocess.Popen) -> dict[str, psutil.Process]:
    """The workers of a command by rank; not what they start, which has their environment."""
    by_rank = {}
    for member in family(process):
        with contextlib.suppress(psutil.Error):
            environment: Mapping[str, str] = member.environ()
            if environment.get("MS_ROLE") == "MS_WORKER":
                by_rank.setdefault(environment["RANK_ID"], member)
    return by_rank


def kill(process: subprocess.Popen) -> None:
    """Sends SIGKILL to a command and all its descendants."""
    members = family(process)
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(members, timeout=30)


def wait_for_rows(process: subprocess.Popen, folder: Path, rows: int = 1, after: int = 0, limit: float = LIMIT) -> None:
    """Waits until a run that resumes from step ``after`` has written rows; it deletes later ones before it compiles."""
    end, cut = time.monotonic() + limit, False
    while not cut or len(lines_of(folder)) <= after + rows:
        cut = cut or len(lines_of(folder)) <= after + 1
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no {rows} rows after step {after} in time"
        time.sleep(0.02)


def lines_of(folder: Path) -> list[str]:
    file = folder / "metrics.csv"
    return file.read_text().splitlines() if file.exists() else []


def rows_of(folder: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv without the timings."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return [{name: text for name, text in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def checkpoints_of(folder: Path) -> list[int]:
    """Steps of the checkpoints, ascending."""
    names = [path.name for path in (folder / "checkpoints").glob("step_*")]
    return sorted(int(name.removeprefix("step_")) for name in names if re.fullmatch(r"step_\d+", name))


def same_bits(one: Path, other: Path) -> list[str]:
    """Differences between two finished runs in metrics.csv, the model, and the shards of the newest checkpoint."""
    ours, theirs = rows_of(one), rows_of(other)
    different = [f"row {a['step']}: {a} {b}" for a, b in zip(ours, theirs, strict=False) if a != b][:3]
    if len(ours) != len(theirs):
        different.append(f"{len(ours)} and {len(theirs)} rows")
    newest = f"checkpoints/step_{checkpoints_of(one)[-1]:06d}"
    shards = [f"{newest}/{path.name}" for path in (one / newest).glob("rank_*.safetensors")]
    assert shards
    files = ["final/model.safetensors", *shards]
    return different + [name for name in files if (one / name).read_bytes() != (other / name).read_bytes()]

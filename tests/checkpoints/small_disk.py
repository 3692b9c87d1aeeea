"""A run on a disk of a few megabytes that fills up and then becomes read-only, in its own mount namespace.

unshare -m python small_disk.py HOME      (as root; others: unshare -rm)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from checkpoints.command import checkpoints_of, finish, run, same_bits, start

OPTIONS = ["train.checkpoint_every=5", "train.keep_last=2", "train.eval_every=10"]
SIZE, LEFT = 6_000_000, 200_000  # bytes: of the disk, and free when it counts as full, less than a checkpoint


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main(home: Path) -> None:
    disk = home / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", disk], check=True)
    folder, ballast = disk / "run", disk / "ballast"
    run(home, "disk/run", "train.steps=20", *OPTIONS)
    assert checkpoints_of(folder) == [15, 20]

    ballast.write_bytes(bytes(free(disk) - LEFT))
    code, out, err = finish(start(home, "disk/run", "train.steps=40", *OPTIONS))
    assert code == 2 and "Traceback" not in err, err
    assert "resuming from step 20\n" in out
    for step in (25, 30, 35):
        assert f"the checkpoint of step {step} could not be written: No space left on device" in out, out
    assert "the last one is of step 20" in out
    assert "error: step 40 could not be saved: No space left on device" in err
    assert checkpoints_of(folder) == [15, 20] and not list((folder / "checkpoints").glob("*.tmp"))

    ballast.unlink()
    out = run(home, "disk/run", "train.steps=40", *OPTIONS)
    assert "resuming from step 20\n" in out
    run(home, "straight", "train.steps=40", *OPTIONS)
    assert not same_bits(folder, home / "straight")

    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    before = content(folder)
    code, _, err = finish(start(home, "disk/run", "train.steps=50", *OPTIONS))
    assert code == 2 and "Traceback" not in err and "Read-only file system" in err, err
    assert content(folder) == before
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert "resuming from step 40\n" in run(home, "disk/run", "train.steps=50", *OPTIONS)
    print("full: 4 checkpoints refused and named, resumed from the previous one, to the same bits; read-only: refused")


def free(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


if __name__ == "__main__":
    main(Path(sys.argv[1]))

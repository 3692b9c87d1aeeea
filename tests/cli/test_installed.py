"""A wheel and an sdist, and the wheel installed in a fresh environment: ``palm`` trains there without the checkout.

Marked ``package``: pip installs the requirements from a package index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.package

ROOT = Path(__file__).resolve().parents[2]
TINY = ["model.layers=1", "model.d_model=16", "model.heads=2", "model.head_dim=8", "model.d_ff=32"]
TINY += ["model.vocab_size=300", "data.seq_len=16", "train.batch_size=4", "train.device=CPU", "train.peak_tflops=1"]
TINY += ["data.path=text.txt", "train.steps=2"]


def run(*words, folder, code=0, **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    line = [str(word) for word in words]
    done = subprocess.run(
        line, cwd=folder, env={**inherited, **environment}, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def tracked(*folders):
    listed = subprocess.run(["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, from a copy of the checkout's tracked files, and the wheel, from the sdist."""
    home = tmp_path_factory.mktemp("built")
    for name in tracked():
        (home / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, home / "source" / name, follow_symlinks=False)
    run(sys.executable, "-m", "venv", home / "venv", folder=home)
    run(home / "venv" / "bin" / "pip", "install", "-q", "build", folder=home)
    run(home / "venv" / "bin" / "python", "-m", "build", "-o", home / "dist", home / "source", folder=home)
    (sdist,), (wheel,) = (home / "dist").glob("*.tar.gz"), (home / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The folder of the programs of an environment in which the wheel is installed."""
    home = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", home / "venv", folder=home)
    run(home / "venv" / "bin" / "pip", "install", "-q", built[1], folder=home)
    return home / "venv" / "bin"


def test_both_hold_every_file_of_the_package(built):
    """Sources, C++, machines, configurations and texts: whatever is tracked, so a new kind of file is not forgotten."""
    files = tracked("mindspore_palm", "yaml") - {"mindspore_palm/configs"}
    assert len(files) > 150
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert files - names == set()
    names = set(zipfile.ZipFile(built[1]).namelist())
    moved = {name.replace("yaml/", "mindspore_palm/configs/") if name.startswith("yaml/") else name for name in files}
    assert moved - names == set()


def test_palm_trains_generates_and_plans_in_an_empty_folder(installed, tmp_path):
    assert "\n  train " in run(installed / "palm", "--help", folder=tmp_path).stdout
    run(installed / "python", "-c", "import mindspore_palm; print(mindspore_palm.list_models())", folder=tmp_path)
    quick = ["train.steps=2", "train.eval_every=0", "train.eval_sequences=4"]
    done = run(installed / "palm", "train", "--config", "palm_tiny", *quick, folder=tmp_path)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "runs" / "palm_tiny" / "final" / "model.safetensors").exists()
    told = run(
        installed / "palm", "generate", "--checkpoint", "runs/palm_tiny", "--max-tokens", 3, "def f", folder=tmp_path
    )
    assert told.stdout.startswith("def f")
    assert "540" in run(installed / "palm", "plan", "--config", "yaml/palm_540b.yaml", folder=tmp_path).stdout


def test_workers_and_watched_processes_repeat_palm(installed, tmp_path):
    """Two workers by msrun, of an environment that is not activated, and a process that is restarted when it dies."""
    (tmp_path / "text.txt").write_text("".join(f"line {i} of {i * i} things\n" for i in range(2000)))
    cache = {"MINDSPORE_PALM_CACHE": str(tmp_path / "cache")}  # compiled here, from the sources of the wheel
    for name, more in (("two", ["parallel.data=2"]), ("watched", ["--max-restarts", "1"])):
        output = f"train.output={name}"
        run(installed / "palm", "train", *TINY, output, *more, folder=tmp_path, **cache)
        assert (tmp_path / name / "final" / "model.safetensors").exists()

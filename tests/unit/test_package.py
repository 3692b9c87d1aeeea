"""The wheel of ``pip install .``: all modules, and the other files that the package reads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA_SUFFIXES = (".cc", ".h", ".html", ".yaml")  # of files that the package reads


def test_the_wheel_holds_the_package(tmp_path):
    pytest.importorskip("setuptools", reason="builds the package, and is not installed")
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "mindspore_hub_conf.py"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "mindspore_palm", copy / "mindspore_palm", ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    result = subprocess.run(
        [sys.executable, "-c", build, tmp_path], cwd=copy, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]
    (wheel,) = tmp_path.glob("mindspore_palm-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = (path.relative_to(copy) for path in (copy / "mindspore_palm").rglob("*"))
    expected = {str(path) for path in package if path.suffix in (".py", *DATA_SUFFIXES)} | {"mindspore_hub_conf.py"}
    assert len(expected) > 100 and not expected - names
    metadata = next(name for name in names if name.endswith("dist-info/METADATA"))
    required = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "Requires-Dist: mindspore==2.10.0" in required and "License: Apache-2.0" in required

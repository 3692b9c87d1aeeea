"""The workflow runs what CI runs, on every supported Python; the image runs palm, as no root, from what it copies."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW, DOCKERFILE = ROOT / ".github" / "workflows" / "ci.yml", ROOT / "Dockerfile"


def project():
    """Lines of pyproject.toml; Python 3.10 has no parser of TOML."""
    return (ROOT / "pyproject.toml").read_text()


def supported():
    """Python versions that the package allows."""
    first, end = map(int, re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', project()).groups())
    return [f"3.{minor}" for minor in range(first, end)]


def test_the_workflow_runs_ci_on_every_supported_python():
    (job,) = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == supported() == ["3.10", "3.11", "3.12"]
    setup, run = job["steps"][-2:]
    assert setup["with"]["python-version"] == "${{ matrix.python }}"
    assert run == {"run": ".ci/run", "env": {"PYTHON": "python${{ matrix.python }}"}}
    assert "PYTHON:-" in (ROOT / ".ci" / "run").read_text()  # the variable by which .ci/run takes it


def test_actions_are_pinned_to_commits_and_may_only_read():
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert len(used) == 2 and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action) for action in used)


def instructions():
    """Instructions of the Dockerfile, each in one line."""
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    return [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]


def copied():
    return [name for word, rest in instructions() if word == "COPY" for name in rest.split()[:-1]]


def test_the_image_runs_palm_and_not_as_root():
    last = dict(instructions())
    assert last["ENTRYPOINT"] == '["palm"]' and last["USER"] == "1000:1000"
    version = re.fullmatch(r"python:(\d\.\d+)-slim-\w+", last["FROM"])[1]
    assert version in supported()


def test_the_image_gets_all_that_it_copies_and_nothing_else():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied())
    assert all((ROOT / name).exists() for name in copied())


def test_the_package_can_be_built_from_what_the_image_copies(tmp_path):
    """As far as files go: what pyproject.toml names, and every file of the package."""
    named = re.findall(r'(?:readme = |file = \[)"([\w./]+)"', project())
    named += [f"{name}.py" for name in re.search(r"py-modules = \[(.*)\]", project())[1].replace('"', "").split(", ")]
    assert len(named) == 3 and set(named) <= set(copied())
    listed = subprocess.run(["git", "ls-files", "mindspore_palm", "yaml"], cwd=ROOT, capture_output=True, text=True)
    hidden = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("**/")]
    assert hidden and not [
        name for name in listed.stdout.split() for line in hidden if fnmatch.fnmatch(Path(name).name, line[3:])
    ]


@pytest.mark.parametrize("program", ["hadolint", "shellcheck"])
def test_linters_find_nothing(program):
    file = {"hadolint": DOCKERFILE, "shellcheck": ROOT / ".ci" / "run"}[program]
    path = shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)
    if not path:
        pytest.skip(f"{program} is not installed; tests/requirements.txt has it")
    options = ["--exclude=SC1091"] if program == "shellcheck" else []  # it sources a file that venv makes
    result = subprocess.run([path, *options, str(file)], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == "", result.stdout


def test_the_release_checklist_names_what_there_is():
    text = (ROOT / "RELEASING.md").read_text()
    paths = set(re.findall(r"`((?:tests|docs|run|mindspore_palm)/[\w./]+)`", text))
    paths |= set(re.findall(r"pytest (tests/[\w/.]+)", text))
    assert len(paths) > 8 and [path for path in paths if not (ROOT / path).exists()] == []
    marks = set(re.findall(r"-m (\w+)`", text)) - {"build"}
    assert marks == {"slow", "torch", "harness", "tpu", "package"} and all(f'"{mark}: ' in project() for mark in marks)

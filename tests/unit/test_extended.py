"""tests/extended.txt names tests that there are, once each, and CI runs them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = [line for line in (ROOT / "tests" / "extended.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]


def test_each_is_there_and_is_named_once():
    assert sorted(set(NAMES)) == NAMES
    for name in NAMES:
        file, _, test = name.partition("::")
        code, function = (ROOT / file).read_text(encoding="utf-8"), test.partition("[")[0]
        assert not function or f"def {function}(" in code, name


def test_no_line_is_within_another():
    for name in NAMES:
        file, _, test = name.partition("::")
        function = f"{file}::{test.partition('[')[0]}"
        assert name in (file, function) or not {file, function} & set(NAMES), name
        assert name == file or file not in NAMES, name


def test_the_marks_that_keep_a_test_apart_are_those_of_the_project():
    from conftest import APART

    marks = re.findall(r'^    "(\w+): ', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(marks) == sorted((*APART, "extended"))


def test_ci_runs_them():
    assert "python -m pytest -n 2 --dist loadfile -m extended" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")

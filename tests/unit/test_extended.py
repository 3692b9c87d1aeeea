"""tests/extended.txt names tests that there are, once each, and CI runs them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = [line for line in (ROOT / "tests" / "extended.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]


def test_each_is_there_and_is_named_once():
    assert sorted(set(NAMES)) == NAMES
    for name in NAMES:
        file, _, test = name.partition("::")
        function = test.partition("[")[0].rpartition("::")[2]
        assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_ci_runs_them():
    assert "python -m pytest -n 2 --dist loadfile -m extended" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")

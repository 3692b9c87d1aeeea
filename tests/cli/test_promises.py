"""Each sentence of the README and its pages that promises something names its tests: tests/promises/**/*.yaml.

After a page changed: ``python tests/promises/check.py --update``, then fill in what it marks.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from promises.ledger import (
    PAGES,
    README,
    ROOT,
    Entry,
    classified,
    classified_texts,
    file_name,
    marked_tests,
    marks_of,
    problems,
    read_ledger,
    sections_of,
    updated,
    written,
)

TEXTS = classified_texts()
UNTESTED = 14
"""Promises of which a part is shown by nothing. It may fall, not rise."""
HERE = "tests/cli/test_promises.py"
TEST = f"{HERE}::test_each_sentence_is_classified_and_its_evidence_is_there"
SMALL = "## A b\n\nIt works. It is fast.\n\n## C\n\nThat means so.\n"


@pytest.fixture
def ledger():
    """Of SMALL, without a fault."""
    works = Entry("promises", "It works.", tests=(TEST,))
    fast = Entry("promises", "It is fast.", measured=("python benchmarks/decode.py",))
    return {"a_b": [works, fast], "c": [Entry("explains", "That means so.")]}


def test_each_sentence_is_classified_and_its_evidence_is_there():
    found = problems(classified(TEXTS), read_ledger())
    assert not found, "\n".join([*found, "python tests/promises/check.py --update brings the ledger up to date"])


def test_most_promises_have_tests():
    entries = [entry for entries in read_ledger().values() for entry in entries if entry.kind == "promises"]
    assert sum(bool(entry.untested) for entry in entries) <= UNTESTED
    assert all(entry.tests or entry.measured or entry.source or entry.untested for entry in entries)
    assert sum(bool(entry.tests) for entry in entries) > 0.8 * len(entries)


def test_a_changed_word_is_seen():
    """On the pages as they are: of any sentence."""
    ledger = read_ledger()
    for page, old, new in (
        ("README.md", "no accelerator needed", "an accelerator needed"),
        ("docs/checkpoints.md", "bitwise reproducibility", "exact reproducibility"),
        ("docs/getting-started.md", "exit code 130", "exit code 0"),
    ):
        assert old in TEXTS[page]
        found = problems(classified({**TEXTS, page: TEXTS[page].replace(old, new)}), ledger)
        assert any("unclassified" in problem and new in problem for problem in found), found
        assert any("not on the page" in problem and old in problem for problem in found), found


def test_readme_and_pages_are_in_the_ledger():
    files = classified(TEXTS).keys()
    assert {f"docs/{page}" for page in PAGES} <= files and len(PAGES) > 20
    assert sum(file.startswith("readme/") for file in files) > 5 and all(classified(TEXTS).values())


def test_what_is_right_is_right(ledger):
    assert problems(sections_of(SMALL), ledger) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"says": "It works always."}, ["unclassified: It works.", "not on the page"]),
        ({"tests": ()}, ["a promise without any of tests, measured, source, untested"]),
        ({"tests": ("tests/cli/test_promises.py::test_nowhere",)}, ["there is no test test_nowhere"]),
        ({"tests": ("tests/cli/test_none.py::test_x",)}, ["there is no file of tests tests/cli/test_none.py"]),
        ({"tests": ("tests/promises/ledger.py::problems",)}, ["there is no file of tests tests/promises/ledger.py"]),
        ({"measured": ("python benchmarks/nothing.py",)}, ["there is no benchmarks/nothing.py"]),
        ({"measured": ("python",)}, ["the command names no file"]),
        ({"was": "It worked."}, ["changed (see whether its evidence still shows it"]),
        ({"kind": "explains"}, ["evidence of what is no promise"]),
        ({"kind": "unclassified", "tests": ()}, ["unclassified"]),
    ],
)
def test_what_is_wrong_is_said(ledger, change, said):
    ledger["a_b"][0] = replace(ledger["a_b"][0], **change)
    found = "\n".join(problems(sections_of(SMALL), ledger))
    for part in said:
        assert part in found, found


def test_sections_twice_and_order(ledger):
    assert "classified twice" in problems(sections_of(SMALL), {**ledger, "c": ledger["c"] * 2})[0]
    assert problems(sections_of(SMALL), {**ledger, "a_b": ledger["a_b"][::-1]}) == [
        "a_b.yaml: not in the order of the page"
    ]
    assert problems(sections_of(SMALL), {**ledger, "d": []}) == ["d.yaml: there is no such section or page"]
    assert "unclassified: That means so." in problems(sections_of(SMALL), {"a_b": ledger["a_b"]})[0]


def test_marks_and_skips_are_read_from_the_source(tmp_path, monkeypatch):
    from promises import ledger as module

    source = (
        "import pytest\npytestmark = [pytest.mark.torch]\n@pytest.mark.slow\ndef test_a(): pass\n"
        "@pytest.mark.skip(reason='x')\ndef test_b(): pass\n@pytest.mark.skipif(True, reason='x')\ndef test_c(): pass\n"
        "@pytest.mark.skipif(f(), reason='x')\ndef test_d():\n    if f(): pytest.skip('y')\n"
        "def test_e():\n    pytest.skip('y')\nclass TestF:\n    def test_g(self): pass\ndef other(): pass\n"
        "@pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.slow), 2])\ndef test_h(x): pass\n"
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(source)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    marks = marked_tests("tests/test_x.py")
    assert marks.keys() == {"test_a", "test_b", "test_c", "test_d", "test_e", "TestF::test_g", "test_h"}
    assert {name for name in marks if "skip" in marks[name]} == {"test_b", "test_c", "test_e"}
    assert marks_of("tests/test_x.py::test_a") == ["slow", "torch"] and marks_of("tests/test_x.py::test_h") == ["torch"]


def test_an_update_keeps_what_is_there_and_marks_what_is_not(ledger):
    markdown = (
        "## C\n\nThat means so. Quite another sentence, and a new one.\n\n## A b\n\nIt works at once. It is fast.\n"
    )
    after = updated(sections_of(markdown), ledger)
    assert list(after) == ["c", "a_b"] and after["a_b"][1] == ledger["a_b"][1]
    assert after["c"][1].kind == "unclassified" and after["c"][1].says.startswith("Quite another")
    assert (after["a_b"][0].was, after["a_b"][0].tests) == ("It works.", (TEST,))
    assert len(problems(sections_of(markdown), after)) == 2
    assert updated(sections_of(SMALL), ledger) == ledger


def test_what_is_written_is_read(ledger, tmp_path):
    awkward = Entry("promises", "| `a: b` | #1, 'x' \\ \"y\" - [z](u.v) **w.** é |", source="s" * 300, was="- a: >-")
    ledger["c"].append(awkward)
    for name, entries in ledger.items():
        (tmp_path / f"{name}.yaml").write_text(written(entries), encoding="utf-8")
    assert read_ledger(tmp_path) == ledger
    assert max(len(line) for file in tmp_path.glob("*.yaml") for line in file.read_text().splitlines()) < 320
    (tmp_path / "c.yaml").write_text("- promises: a\n  explains: b\n")
    with pytest.raises(ValueError, match="an entry has one of promises, explains, unclassified"):
        read_ledger(tmp_path)


def test_files_of_sections_have_names_of_their_own():
    names = [file_name(line[3:]) for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    assert len(names) == len(set(names)) and all(names)


def test_the_command():
    done = subprocess.run([sys.executable, "tests/promises/check.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "promise something" in done.stdout, done.stdout + done.stderr
    done = subprocess.run(
        [sys.executable, "tests/promises/check.py", "--list"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "test_palm_tiny_beats_gzip [slow]" in done.stdout

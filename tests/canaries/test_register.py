"""The register of workarounds, the sites in the package and the canaries are in step."""

from __future__ import annotations

import ast

import pytest
from canaries.register import ID, PACKAGE, REGISTER, ROOT, rows, still

ROWS = rows()
HERE = ROOT / "tests" / "canaries"


def ids_in_the_package() -> dict[str, set[str]]:
    """File of the package -> ids that stand in it."""
    files = [path for pattern in ("*.py", "*.cc", "*.h") for path in PACKAGE.rglob(pattern)]
    found = {str(path.relative_to(PACKAGE)): set(ID.findall(path.read_text(encoding="utf-8"))) for path in files}
    return {file: ids for file, ids in found.items() if ids}


def canaries() -> set[str]:
    """Names of all tests in this folder that have an id."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in HERE.glob("test_*.py")]
    names = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.startswith("test_ms_")}


def test_ids_are_numbered_from_one_without_gaps():
    assert sorted(ROWS) == [f"MS-{number:02d}" for number in range(1, len(ROWS) + 1)]


@pytest.mark.parametrize("id", ROWS)
def test_an_id_stands_at_all_its_sites(id):
    assert ROWS[id].sites, f"{id}: name at least one file and what in it"
    inside = ids_in_the_package()
    for file, names in ROWS[id].sites.items():
        assert id in inside.get(file, ()), f"{file} does not mention {id}"
        text = (PACKAGE / file).read_text(encoding="utf-8")
        for name in names:
            assert name in text, f"{id}: there is no {name} in {file}"


def test_every_id_in_the_package_is_in_the_register():
    for file, ids in ids_in_the_package().items():
        for id in ids:
            assert id in ROWS, f"{file} mentions {id}, which {REGISTER.name} lacks"
            assert file in ROWS[id].sites, f"{file} mentions {id}; {REGISTER.name} does not list it as a site"


@pytest.mark.parametrize("id", ROWS)
def test_an_id_has_a_canary_or_a_reason_for_none(id):
    row = ROWS[id]
    if row.canary.startswith("none: "):
        return
    assert row.tests, f"{id}: name its canary, or say why there is none"
    for test in row.tests:
        assert test in canaries(), f"{id}: there is no test {test}"
        assert test.startswith(f"test_ms_{id[-2:]}_"), f"{test} does not carry the id {id}"


def test_every_canary_is_in_the_register():
    listed = {test for row in ROWS.values() for test in row.tests}
    assert canaries() == listed


def test_other_pages_and_tests_name_known_ids_alone():
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", *HERE.glob("*.py")]
    named = {id for page in pages for id in ID.findall(page.read_text(encoding="utf-8"))}
    assert named <= set(ROWS)


def test_a_canary_that_fails_says_what_to_remove():
    still("MS-07", True)
    with pytest.raises(AssertionError, match=r"MS-07: MindSpore has fixed this; remove the workaround in `parallel/"):
        still("MS-07", False)

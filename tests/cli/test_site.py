"""The site: links lead somewhere, every page is in the navigation, and what is generated covers the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from docs.hooks.links import anchors, links, relinked
from docs.hooks.outside import OUTSIDE
from docs.hooks.reference import GENERATED, MARK, filled
from mindspore_palm.cli.palm import COMMANDS
from mindspore_palm.config import Settings
from mindspore_palm.plan.machines import Machine, machine_names

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in DOCS.rglob("*.md")}
PAGES |= {path: (ROOT / path).read_text(encoding="utf-8") for path in OUTSIDE}
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def navigated(entries):
    """Pages of a navigation, in its order."""
    for entry in entries:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else navigated(value)


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page):
    for path, anchor in links(page, PAGES[page]):
        assert (ROOT / path).exists(), f"{page}: there is no {path}"
        assert not anchor or anchor in anchors(PAGES[path]), f"{page}: {path} has no heading {anchor}"
    assert not re.search(r"\]\(/|\]\(\w+@|<img", PAGES[page]), f"{page}: a link or picture that is no Markdown path"


def test_every_page_is_in_the_navigation():
    in_navigation = list(navigated(SITE["nav"]))
    pages = {OUTSIDE.get(path, path.removeprefix("docs/")) for path in PAGES}
    assert set(in_navigation) == pages, "put the page into nav of mkdocs.yml"
    assert len(in_navigation) == len(pages)


def test_the_front_page_is_short():
    readme = ROOT / "README.md"
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= 180 and readme.stat().st_size <= 10_000


def test_the_readme_leads_to_most_pages():
    linked = {path for path, _ in links("README.md", PAGES["README.md"])}
    assert len(linked & PAGES.keys()) > 20


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_one_title_and_closed_code(page):
    code = re.findall(r"^\s*(?:```+|~~~+)", PAGES[page], re.MULTILINE)
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    assert len(code) % 2 == 0 and len(re.findall(r"^# ", text, re.MULTILINE)) == 1 and PAGES[page].startswith("# ")


def test_what_a_page_asks_for_is_generated():
    asked = [name for text in PAGES.values() for name in MARK.findall(text)]
    assert sorted(asked) == sorted(GENERATED)
    with pytest.raises(KeyError, match="nothing of that name"):
        filled("<!-- generated: nothing of that name -->")


def test_every_setting_is_on_the_page_of_the_configuration():
    page = filled(PAGES["docs/reference/configuration.md"])
    for section, group in Settings.model_fields.items():
        for name, field in group.annotation.model_fields.items():
            (row,) = re.findall(rf"^\| `{section}\.{name}` \|(.+)\|(.+)\|(.+)\|$", page, re.MULTILINE)
            words = " ".join(field.description.split()).partition("|")[0].partition("<")[0].partition("*")[0]
            assert all(cell.strip() for cell in row) and row[2].strip().startswith(words), row
    for row in (
        "| `optimizer.name` | `adafactor`, `adamw`, `lion` | `adafactor` |",
        "| `train.steps` | integer, above 0 | `1000` |",
        "| `data.validation_fraction` | number, above 0, below 1 | `0.02` |",
        "| `optimizer.factored` | true or false | `false` |",
        "| `data.tokenizer` | text | empty |",
        "| `model.preset` | empty, `palm_tiny`, ",
    ):
        assert row in page
    assert "any |" not in page


def test_every_command_is_on_the_page_of_the_command_line():
    page = filled(PAGES["docs/reference/command-line.md"])
    assert re.findall(r"^## palm (\S+)$", page, re.MULTILINE) == list(COMMANDS)
    assert re.findall(r"^usage: palm (\S+)", page, re.MULTILINE) == [name for name in COMMANDS if name != "harness"]
    assert "--print-sharding" in page and "--max-tokens" in page


def test_machines_and_their_numbers_are_listed():
    page = filled(PAGES["docs/machines.md"])
    for name in (*machine_names(), *Machine.model_fields):
        assert f"\n| `{name}` |" in page, name
    assert re.search(
        r"^\| `tpu-v4` \| TPU v4, .* \| 275 \| 32 \| 1200 \| 0.825 \| torus 12 x 16 x 16 \|$", page, re.MULTILINE
    )


def test_the_site_is_built_strictly_by_ci():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (command,) = re.findall(r"^.*mkdocs build.*$", script, re.MULTILINE)
    assert "-r docs/requirements.txt" in script and "--strict" in command
    assert " -q" not in command and "--quiet" not in command  # warnings that are not shown are not counted
    lines = (DOCS / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in lines if not line.startswith("#"))
    assert SITE["theme"]["font"] is False  # and no other part of the site is fetched from elsewhere
    assert "mkdocs" not in (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert "mkdocs" not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_changelog_begins_with_the_version_of_the_package():
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    headings = re.findall(r"^## (.+)$", PAGES["CHANGELOG.md"], re.MULTILINE)
    assert headings[:2] == ["Unreleased", version]


@pytest.mark.parametrize(
    ("markdown", "found"),
    [
        ("[a](b.md)", [("docs/b.md", "")]),
        ("[a](../run/x.py#y) and [c](#d)", [("run/x.py", "#y"), ("docs/p.md", "#d")]),
        ("[a](https://b.c) `[a](b)`\n```\n[a](b.md)\n```\n![p](q.png)", [("docs/q.png", "")]),
        ("~~~~\n[a](b)\n~~~\n[a](b)\n~~~~\n[z](z)", [("docs/z", "")]),
    ],
)
def test_links_are_found(markdown, found):
    assert list(links("docs/p.md", markdown)) == found


def test_links_are_replaced_outside_of_code():
    text = "[a](../run/x.py#y) [b](#c)\n```\n[a](../run/x.py)\n```\n"
    assert relinked("docs/p.md", text, lambda path: f"<{path}>") == text.replace("../run/x.py#y", "<run/x.py>#y")


def test_headings_have_the_anchors_of_github():
    assert anchors("# A b: `c`\n```\n# no\n```\n## D_e (f)\n") == {"#a-b-c", "#d_e-f"}

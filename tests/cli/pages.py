"""The README and the pages of the site, and the commands that they tell a reader to type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docs.hooks.outside import OUTSIDE

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
    for file in (*(ROOT / path for path in OUTSIDE), *sorted((ROOT / "docs").rglob("*.md")))
}
"""Texts of all pages, by path in the repository."""
LANGUAGES = {
    "bash": "commands, one per line",
    "console": "commands after $, and what they print",
    "python": "code that a test runs as it stands",
    "py": "code that is only shown",
    "text": "what a command prints, files and folders",
    "yaml": "a part of a configuration",
}
"""Languages of a fence, and their content. A fence without one could hide a command from the tests."""
PROGRAMS = ("cat", "curl", "docker", "mkdocs", "msrun", "palm", "pip", "python", "python3", "sbatch")
"""Programs that make a command of the code within a sentence."""
FENCE = re.compile(r"^ *(```+)([^\n`]*)\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command of a page."""

    text: str
    """As a reader types it, its lines joined, without a comment."""
    comment: str = ""
    answer: str = ""
    """Its output, as the page shows it; empty if the page shows none."""
    inline: bool = False
    """Whether it is code within a sentence or a table."""


def blocks(text: str) -> list[tuple[str, str]]:
    """The code between fences: language and content."""
    return [(language.strip(), code) for _, language, code in FENCE.findall(text)]


def commands(text: str) -> list[Command]:
    """The commands of a page in their order: lines of its shell, and code within its sentences that has arguments."""
    found: list[Command] = []
    after = 0
    for fence in FENCE.finditer(text):
        found += _inline(text[after : fence.start()])
        found += _typed(fence.group(2).strip(), re.sub(r"\\\n\s*", "", fence.group(3)))
        after = fence.end()
    found += _inline(text[after:])
    return [one for number, one in enumerate(found) if not (one.inline and one in found[:number])]  # each once


def _typed(language: str, code: str) -> Iterator[Command]:
    if language == "bash":
        for line in code.splitlines():
            if line.strip() and not line.startswith("#"):
                yield _command(line)
    elif language == "console":
        for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
            line, _, answer = part.partition("\n")
            yield _command(line, answer.strip("\n"))


def _command(line: str, answer: str = "") -> Command:
    text, _, comment = line.partition("  # ") if "  # " in line else line.partition(" # ")
    return Command(text.strip(), comment.strip(), answer)


def _inline(text: str) -> Iterator[Command]:
    for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
        words = code.split()
        named = 2 if words and words[0] in ("palm", "python", "python3") else 1  # palm train, run/train.py: names
        if words and words[0] in PROGRAMS and len(words) > named + ("-m" in words[1:2]):
            yield Command(" ".join(words), inline=True)

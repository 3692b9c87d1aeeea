"""The sentences of a Markdown text, by section: what a reader may take for a promise.

Code blocks, headings, headers of tables, images, comments, and directives with their options (``::: module``) are no
sentences. A row of a table is one. What benchmarks/page.py writes between its marks is none: its test compares the
page with the results.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

ABBREVIATIONS = ("e.g", "i.e", "etc", "vs", "cf", "al", "approx", "fig", "sec", "no", "st", "dr", "mr", "ms", "prof")
PROTECTED = re.compile(r"(`+).+?\1|\*\*.+?\*\*|\[[^\]]*\]\([^)\s]*\)|https?://\S*[^\s.,;:!?)]")  # no sentence ends here
END = re.compile(r"(?<=[.!?])[\"'”’)\]*_]*(?=\s)")
ITEM = re.compile(r"(\s*)(?:[-*+]|\d+[.)])\s+(.*)")
RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$")
OF_BENCHMARKS = re.compile(r"^<!-- ([\w ]+): benchmarks/page\.py -->$.*?^<!-- end of \1 -->$", re.M | re.S)
TITLE = "(before the first section)"


def normal(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())


def sentences_of(markdown: str) -> dict[str, list[str]]:
    """Sections (level 2) and their sentences, both in the order of the text."""
    sections: dict[str, list[str]] = {}
    for section, block in _blocks(OF_BENCHMARKS.sub("", markdown)):
        sections.setdefault(section, []).extend(_split(block))
    return sections


def _blocks(markdown: str) -> Iterator[tuple[str, str]]:
    """Paragraphs, list items and rows of tables, each with its section."""
    section, block, fence, directive = TITLE, [], "", False
    lines = markdown.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        bare = re.sub(r"^(\s*>)+ ?", "", line).strip()
        directive = bool(bare) and (bare.startswith(":::") or (directive and line.startswith("    ")))
        if directive or re.fullmatch(r"<!--.*-->", bare):
            bare = ""
        opened = re.match(r"(```+|~~~+)", bare)
        row = bare.startswith("|")
        item = ITEM.match(re.sub(r"^(\s*>)+ ?", "", line))
        if fence or opened or not bare or bare.startswith("#") or row or item:
            if block:
                yield section, normal(" ".join(block))
            block = []
        if fence:
            fence = "" if bare.startswith(fence) and not bare.strip(fence[0]) else fence
        elif opened:
            fence = opened.group(1)
        elif bare.startswith("#"):
            level, _, name = bare.partition(" ")
            section = name if level == "##" else section
        elif row:
            if not RULE.match(bare) and not (RULE.match(following) and "-" in following):
                yield section, normal(bare)
        elif item:
            block = [item.group(2)]
        elif bare:
            block.append(bare)
    if block:
        yield section, normal(" ".join(block))


def _split(block: str) -> list[str]:
    block = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", block).strip()
    if not block:
        return []
    if block.startswith("|"):
        return [block]
    hidden = PROTECTED.sub(lambda found: re.sub(r"[.!?\s]", "x", found.group()), block)
    found, start = [], 0
    for end in END.finditer(hidden):
        before = hidden[start : end.start()]
        word = re.search(r"([\w.]*)\.$", before)
        if before.endswith("...") or (word and _is_short(word.group(1))):
            continue
        found.append(block[start : end.end()].strip())
        start = end.end()
    return [sentence for sentence in [*found, block[start:].strip()] if sentence]


def _is_short(word: str) -> bool:
    """Whether a word before a full stop is an abbreviation or an initial, so that no sentence ends there."""
    return word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isalpha() and word.isupper())

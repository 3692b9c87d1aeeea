"""Relative links of Markdown: where they lead in the repository, and which headings a page has."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator

LINK = re.compile(r"(?<=\])\((?!https?:|mailto:)([^)\s#]*)(#[^)\s]*)?\)")
FENCE = re.compile(r"^\s*(`{3,}|~{3,})")


def _lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """Lines, and whether each is code."""
    fence = ""
    for line in markdown.splitlines(keepends=True):
        mark = FENCE.match(line)
        if fence:
            yield line, True
            if mark and mark.group(1).startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        else:
            fence = mark.group(1) if mark else ""
            yield line, bool(fence)


def resolved(page: str, target: str) -> str:
    """The path in the repository that a link of a page leads to.

    Args:
        page: path of the page in the repository.
        target: the link, without its anchor; empty for the page itself.
    """
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target)) if target else page


def links(page: str, markdown: str) -> Iterator[tuple[str, str]]:
    """Path in the repository and anchor (empty, or ``#heading``) of each relative link, code left out."""
    for line, is_code in _lines(markdown):
        if not is_code:
            for target, anchor in LINK.findall(re.sub(r"`[^`]*`", "``", line)):
                yield resolved(page, target), anchor


def relinked(page: str, markdown: str, new_target: Callable[[str], str | None]) -> str:
    """The text with each relative link replaced by ``new_target`` of its path in the repository, unless that is None.

    Args:
        page: path of the page in the repository.
        markdown: its text.
        new_target: from a path in the repository to the link to write.
    """

    def replace(found: re.Match[str]) -> str:
        target, anchor = found.group(1), found.group(2) or ""
        new = new_target(resolved(page, target)) if target else None
        return found.group(0) if new is None else f"({new}{anchor})"

    return "".join(line if is_code else LINK.sub(replace, line) for line, is_code in _lines(markdown))


def anchors(markdown: str) -> set[str]:
    """``#heading`` of each heading, spelled as on GitHub."""
    headings = (line.lstrip("#") for line, is_code in _lines(markdown) if line.startswith("#") and not is_code)
    return {"#" + re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}

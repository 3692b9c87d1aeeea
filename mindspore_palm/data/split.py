"""Which text is trained on and which is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from mindspore_palm.data.corpus import Document

Split = Literal["train", "validation"]
Mode = Literal["documents", "tails"]
SPLITS: tuple[Split, Split] = ("train", "validation")


@dataclass(frozen=True)
class Piece:
    """Text of one split."""

    split: Split
    text: str
    size: int
    """Bytes of ``text``, in UTF-8."""
    ends: bool
    """Whether [eod] follows: the document ends here, or its share of this split does."""


def held_out(text: str, fraction: float) -> bool:
    """Whether a document with this text (of a part: its first) is held out. By its hash: equal texts stay together."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def split(documents: Iterable[Document], mode: Mode, fraction: float) -> Iterator[Piece]:
    """Deals documents out to the two splits, in order.

    Args:
        documents: parts of a document must follow each other.
        mode: ``documents`` holds out whole documents by the hash of their text. ``tails`` holds out the end of each
            document, from a line's start where there is one: for a corpus that is one long text, or so few that the
            hash gives all of them to one split.
        fraction: share that is held out.
    """
    destination: Split = "train"
    for document in documents:
        if mode == "tails":
            yield from _head_and_tail(document, fraction)
            continue
        if document.offset == 0:
            destination = "validation" if held_out(document.text, fraction) else "train"
        yield Piece(destination, document.text, document.part_size, document.last)


def _head_and_tail(document: Document, fraction: float) -> Iterator[Piece]:
    border = document.size - max(1, round(document.size * fraction))  # bytes of the document before its tail
    content = document.text.encode()
    cut = border - document.offset
    if 0 < cut < len(content):
        line_start = content.find(b"\n", cut - 1) + 1  # cut itself, if a line starts there
        if 0 < line_start < len(content):
            cut = line_start
        while cut < len(content) and 0x80 <= content[cut] < 0xC0:  # not inside a character
            cut += 1
    cut = min(max(0, cut), len(content))
    if cut:
        yield Piece("train", content[:cut].decode(), cut, document.offset + cut >= border)
    if cut < len(content):
        yield Piece("validation", content[cut:].decode(), len(content) - cut, document.last)

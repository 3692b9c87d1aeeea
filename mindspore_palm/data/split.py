"""Which text is trained on and which is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from mindspore_palm.data.corpus import Document

Split = Literal["train", "validation"]
Mode = Literal["documents", "long tails", "tails"]
SPLITS: tuple[Split, Split] = ("train", "validation")


LEAST_OF_TAIL = 0.25  # a line's start is where a tail begins, unless less than this share of it would be left


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


def share_is_near(share: float, fraction: float) -> bool:
    """Whether a share of the text is what ``fraction`` asks for, as nearly as the hash of some documents can do it."""
    most = min(3 * fraction, (1 + 2 * fraction) / 3)
    return fraction / 4 <= share <= most


def split(documents: Iterable[Document], mode: Mode, fraction: float, long: int = 0) -> Iterator[Piece]:
    """Deals documents out to the two splits, in order.

    Args:
        documents: parts of a document must follow each other.
        mode: ``documents`` holds out whole documents by the hash of their text. ``long tails`` does so with documents
            of up to ``long`` bytes, and holds out the end of each longer one: for a book among notes, which would be
            most of the text. ``tails`` holds out the end of each document: for a corpus that is one long text, or so
            few that the hash gives all of them to one split. An end begins at a line's start where there is one near.
        fraction: share that is held out.
        long: bytes, for ``long tails``.
    """
    destination: Split = "train"
    for document in documents:
        if mode == "tails" or (mode == "long tails" and document.size > long):
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
        spared = document.size - document.offset - line_start  # bytes of the tail from that line on
        if 0 < line_start < len(content) and spared >= LEAST_OF_TAIL * (document.size - border):
            cut = line_start
        while cut < len(content) and 0x80 <= content[cut] < 0xC0:  # not inside a character
            cut += 1
    cut = min(max(0, cut), len(content))
    if cut:
        yield Piece("train", content[:cut].decode(), cut, document.offset + cut >= border)
    if cut < len(content):
        yield Piece("validation", content[cut:].decode(), len(content) - cut, document.last)

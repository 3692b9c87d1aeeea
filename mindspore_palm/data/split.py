"""The train/validation split of a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from mindspore_palm.data.corpus import Document
from mindspore_palm.random import key64

Split = Literal["train", "validation"]
Mode = Literal["documents", "long tails", "tails"]
SPLITS: tuple[Split, Split] = ("train", "validation")
LEAST_OF_TAIL = 0.25  # a tail is shortened to the start of a line if at least this share of it is left


@dataclass(frozen=True)
class Piece:
    """A piece of text that belongs to one split."""

    split: Split
    text: str
    size: int
    """Bytes of ``text``, in UTF-8."""
    ends: bool
    """Whether [eod] follows: the document, or its part in this split, ends here."""


def held_out(text: str, fraction: float) -> bool:
    """Whether a document is held out, by the hash of its text (or of its first part): equal texts stay together."""
    return key64(text) < fraction * 2**64


def share_is_near(share: float, fraction: float) -> bool:
    """Whether a share of the text is as close to ``fraction`` as the hash of a few documents can make it."""
    most = min(3 * fraction, (1 + 2 * fraction) / 3)
    return fraction / 4 <= share <= most


def split(documents: Iterable[Document], mode: Mode, fraction: float, long: int = 0) -> Iterator[Piece]:
    """Assigns documents to the two splits, in order.

    Args:
        documents: the parts of a document must be consecutive.
        mode: ``documents`` holds out complete documents by the hash of their text. ``long tails`` does the same with
            documents of up to ``long`` bytes and holds out the end of each longer one: for a book among notes, which
            would be most of the text. ``tails`` holds out the end of every document: for a corpus of one long text, or
            of so few documents that the hash assigns all of them to one split. If a line starts near the split point,
            the held-out end starts there.
        fraction: share of the text to hold out.
        long: length limit in bytes for ``long tails``.
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
    head = document.size - max(1, round(document.size * fraction))  # bytes of the document before its tail
    content = document.text.encode()
    cut = head - document.offset
    if 0 < cut < len(content):
        line_start = content.find(b"\n", cut - 1) + 1  # cut itself, if a line starts there
        tail = document.size - document.offset - line_start  # bytes of the tail if it starts at that line
        if 0 < line_start < len(content) and tail >= LEAST_OF_TAIL * (document.size - head):
            cut = line_start
        while cut < len(content) and 0x80 <= content[cut] < 0xC0:  # never inside a character
            cut += 1
    cut = min(max(0, cut), len(content))
    if cut:
        yield Piece("train", content[:cut].decode(), cut, document.offset + cut >= head)
    if cut < len(content):
        yield Piece("validation", content[cut:].decode(), len(content) - cut, document.last)

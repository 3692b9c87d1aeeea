"""What a corpus holds, in one reading: which way it is split, the size of each split, and how well gzip does on it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mindspore_palm.data.corpus import Document
from mindspore_palm.data.split import SPLITS, Mode, Piece, split
from mindspore_palm.errors import UserError

BLOCK_BYTES = 2**14  # text of the tokenizer's sample is taken in blocks of this, a few hundred lines
GZIP = 16 + zlib.MAX_WBITS  # zlib's sign for the gzip format


@dataclass(frozen=True)
class Survey:
    """What a corpus holds."""

    mode: Mode
    """How it is split, see ``split.split``."""
    documents: dict[str, int]
    """Documents of each split."""
    size: dict[str, int]
    """Bytes of each split, in UTF-8."""
    gzip9_bits_per_byte: float
    """Bits that ``gzip -9`` needs for a byte of all held-out text in one stream: a mark for a model to pass."""


def survey(read: Callable[[], Iterable[Document]], fraction: float, where: str) -> Survey:
    """Reads the corpus and decides how to split it: by documents, or by tails where that leaves a split empty.

    Args:
        read: gives the documents; called once or twice.
        fraction: share that is held out.
        where: the corpus, for messages.

    Raises:
        UserError: there is no text, or too little to hold some of it out.
    """
    modes: tuple[Mode, Mode] = ("documents", "tails")
    for mode in modes:
        result = _survey(split(read(), mode, fraction), mode)
        if all(result.size[name] for name in SPLITS):
            return result
        if not any(result.size.values()):
            raise UserError(f"data.path = {where}: there is no text in it")
    empty = next(name for name in SPLITS if not result.size[name])
    raise UserError(
        f"data.path = {where}: {sum(result.size.values())} bytes of text leave none for {empty} with "
        f"data.validation_fraction = {fraction}; bring more text, or bring the fraction nearer to 0.5"
    )


def sample(pieces: Iterable[Piece], total: int, most: int) -> Iterator[str]:
    """Training text spread evenly over all of it, the same each time.

    Args:
        pieces: of both splits; only train counts.
        total: bytes of the train split.
        most: bytes to take at most.
    """
    if total <= most:
        yield from (piece.text for piece in pieces if piece.split == "train")
        return
    block_bytes = max(1, min(BLOCK_BYTES, most // 16))
    seen = taken = 0
    for piece in pieces:
        if piece.split != "train":
            continue
        for block in _blocks(piece.text, block_bytes):
            size = len(block.encode())
            seen += size
            if (taken + size) * total <= most * seen:  # never ahead of an even share
                taken += size
                yield block


def _survey(pieces: Iterable[Piece], mode: Mode) -> Survey:
    documents, size = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    packer = zlib.compressobj(9, zlib.DEFLATED, GZIP)
    packed = 0
    for piece in pieces:
        documents[piece.split] += piece.ends
        size[piece.split] += piece.size
        if piece.split == "validation":
            packed += len(packer.compress(piece.text.encode()))
    packed += len(packer.flush())
    return Survey(mode, dict(documents), dict(size), 8 * packed / max(1, size["validation"]))


def survey_from_json(value: dict[str, Any]) -> Survey:
    """The survey that ``dataclasses.asdict`` took apart."""
    return Survey(**value)


def _blocks(text: str, size: int) -> Iterator[str]:
    """Runs of at most ``size`` characters, ended after a line where there is one."""
    start = 0
    while start < len(text):
        end = start + size
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end

"""What a corpus holds, in one reading: which way it is split, the size of each split, and how well gzip does on it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mindspore_palm.data.corpus import Document
from mindspore_palm.data.split import SPLITS, Mode, Piece, share_is_near, split
from mindspore_palm.errors import UserError

BLOCK_BYTES = 2**14  # text of the tokenizer's sample is taken in blocks of this, a few hundred lines
LONG_SHARE = 0.25  # a document is long from this share of all held-out text on: the hash of shorter ones averages out
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
    long: int
    """Bytes from which on a document is cut, see ``split.split``; 0 where the mode does not ask."""
    shortest: int
    """Bytes of the shortest document."""
    digest: str
    """Hash of all documents in order, to notice a text that changes while it is prepared."""
    gzip9_bits_per_byte: float
    """Bits that ``gzip -9`` needs for a byte of all held-out text in one stream: a mark for a model to pass."""

    @property
    def whole(self) -> bool:
        """Whether no split is empty."""
        return all(self.size[name] for name in SPLITS)

    @property
    def held_out(self) -> float:
        """Share of the bytes that is held out."""
        return self.size["validation"] / sum(self.size.values())


def survey(read: Callable[[], Iterable[Document]], fraction: float, where: str, any_share: bool = False) -> Survey:
    """Reads the corpus and decides how to split it.

    By documents, where that holds out about as much as it should. If not, because a few long ones decide, by the hash
    of the short ones and by the ends of the long ones; and if that does not do it, by the ends of all of them.

    Args:
        read: gives the documents; called once for each way that is tried.
        fraction: share that is held out.
        where: the corpus, for messages.
        any_share: whether to split by documents whatever share that holds out, if it is not all or nothing; earlier
            versions did so.

    Raises:
        UserError: there is no text, or too little to hold some of it out.
    """
    found = _survey(read(), "documents", fraction)
    total = sum(found.size.values())
    if not total:
        raise UserError(f"{where}: there is no text in it")
    if found.whole and (any_share or share_is_near(found.held_out, fraction)):
        return found
    tried, long = [found], int(total * fraction * LONG_SHARE)
    if found.shortest <= long and not any_share:
        tried.append(_survey(read(), "long tails", fraction, long))
        if tried[-1].whole and share_is_near(tried[-1].held_out, fraction):
            return tried[-1]
    tried.append(_survey(read(), "tails", fraction))
    whole = [survey for survey in tried if survey.whole]
    if whole:
        return min(whole, key=lambda survey: abs(survey.held_out - fraction))
    empty = next(name for name in SPLITS if not tried[-1].size[name])
    raise UserError(
        f"{where}: {total} bytes of text leave none for {empty} with "
        f"data.validation_fraction = {fraction}; bring more text, or bring the fraction nearer to 0.5"
    )


class Digest:
    """Hash of documents in order: of their text and where each ends."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=32)
        self.shortest = 0
        """Bytes of the shortest document that has passed; 0 if none has."""

    def of(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents, which are taken into the hash as they pass."""
        for document in documents:
            self._hash.update(f"{document.offset} {document.size} {document.part_size} ".encode())
            self._hash.update(document.text.encode())
            self.shortest = min(self.shortest or document.size, document.size)
            yield document

    def __str__(self) -> str:
        """Hexadecimal."""
        return self._hash.hexdigest()


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


def _survey(documents: Iterable[Document], mode: Mode, fraction: float, long: int = 0) -> Survey:
    count, size, digest = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0), Digest()
    packer = zlib.compressobj(9, zlib.DEFLATED, GZIP)
    packed = 0
    for piece in split(digest.of(documents), mode, fraction, long):
        count[piece.split] += piece.ends
        size[piece.split] += piece.size
        if piece.split == "validation":
            packed += len(packer.compress(piece.text.encode()))
    packed += len(packer.flush())
    return Survey(mode, count, size, long, digest.shortest, str(digest), 8 * packed / max(1, size["validation"]))


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

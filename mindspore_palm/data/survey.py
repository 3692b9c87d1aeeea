"""Survey of a corpus, in one reading: how to split it, the size of each split, and how well gzip compresses it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mindspore_palm.data.corpus import Document
from mindspore_palm.data.split import SPLITS, Mode, Piece, share_is_near, split
from mindspore_palm.errors import UserError

SAMPLE_BLOCK_BYTES = 2**14  # the tokenizer's sample is taken in blocks of this size, a few hundred lines
LONG_SHARE = 0.25  # of the text to hold out: a larger document is long; shorter ones average out under the hash
GZIP = 16 + zlib.MAX_WBITS  # selects the gzip format in zlib


@dataclass(frozen=True)
class Survey:
    """Facts about a corpus and its split. survey.json stores them."""

    mode: Mode
    """Way to split the corpus, see ``split.split``."""
    documents: dict[str, int]
    """Number of documents in each split."""
    size: dict[str, int]
    """Bytes of each split, in UTF-8."""
    long: int
    """Length limit in bytes of ``long tails``, see ``split.split``; 0 in other modes."""
    shortest: int
    """Bytes of the shortest document."""
    digest: str
    """Hash of all documents in order, to detect a text that changes while it is prepared."""
    gzip9_bits_per_byte: float
    """Bits per byte that ``gzip -9`` needs for all held-out text in one stream: a baseline for a model."""

    @property
    def has_both_splits(self) -> bool:
        """Whether neither split is empty."""
        return all(self.size[name] for name in SPLITS)

    @property
    def held_out(self) -> float:
        """Share of the bytes that is held out."""
        return self.size["validation"] / sum(self.size.values())


def survey_corpus(
    read: Callable[[], Iterable[Document]], fraction: float, where: str, any_share: bool = False
) -> Survey:
    """Reads the corpus and chooses how to split it.

    The first choice is by documents. If a few long documents push the share that this holds out too far from
    ``fraction``, the next choice is by the hash of the short documents and the ends of the long ones. The last choice
    is by the ends of all documents.

    Args:
        read: returns the documents; called once for each way that is tried.
        fraction: share of the text to hold out.
        where: name of the corpus, for messages.
        any_share: split by documents whatever share that holds out, as earlier versions did, unless it is all or
            nothing.

    Raises:
        UserError: there is no text, or too little to hold some of it out.
    """
    by_documents = _survey(read(), "documents", fraction)
    total = sum(by_documents.size.values())
    if not total:
        raise UserError(f"{where}: there is no text in it")
    if by_documents.has_both_splits and (any_share or share_is_near(by_documents.held_out, fraction)):
        return by_documents
    tried, long = [by_documents], int(total * fraction * LONG_SHARE)
    if by_documents.shortest <= long and not any_share:
        tried.append(_survey(read(), "long tails", fraction, long))
        if tried[-1].has_both_splits and share_is_near(tried[-1].held_out, fraction):
            return tried[-1]
    tried.append(_survey(read(), "tails", fraction))
    usable = [survey for survey in tried if survey.has_both_splits]
    if usable:
        return min(usable, key=lambda survey: abs(survey.held_out - fraction))
    empty = next(name for name in SPLITS if not tried[-1].size[name])
    raise UserError(
        f"{where}: {total} bytes of text leave none for {empty} with "
        f"data.validation_fraction = {fraction}; bring more text, or move the fraction closer to 0.5"
    )


class Digest:
    """Hash of documents in order: their text and where each ends."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=32)
        self.shortest = 0
        """Bytes of the shortest document so far; 0 before the first one."""

    def hashing(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yields the documents unchanged and adds each one to the hash."""
        for document in documents:
            self._hash.update(f"{document.offset} {document.size} {document.part_size} ".encode())
            self._hash.update(document.text.encode())
            self.shortest = min(self.shortest or document.size, document.size)
            yield document

    def __str__(self) -> str:
        """The hash so far, hexadecimal."""
        return self._hash.hexdigest()


def sample(pieces: Iterable[Piece], total: int, most: int) -> Iterator[str]:
    """Deterministic sample of the training text, spread evenly over all of it.

    Args:
        pieces: text of both splits; only the train split is sampled.
        total: bytes of the train split.
        most: maximum number of bytes to sample.
    """
    if total <= most:
        yield from (piece.text for piece in pieces if piece.split == "train")
        return
    block_bytes = max(1, min(SAMPLE_BLOCK_BYTES, most // 16))
    seen = sampled = 0
    for piece in pieces:
        if piece.split != "train":
            continue
        for block in _blocks(piece.text, block_bytes):
            size = len(block.encode())
            seen += size
            if (sampled + size) * total <= most * seen:  # never ahead of an even share
                sampled += size
                yield block


def _survey(documents: Iterable[Document], mode: Mode, fraction: float, long: int = 0) -> Survey:
    count: dict[str, int] = dict.fromkeys(SPLITS, 0)
    size: dict[str, int] = dict.fromkeys(SPLITS, 0)
    digest = Digest()
    gzip = zlib.compressobj(9, zlib.DEFLATED, GZIP)
    compressed = 0
    for piece in split(digest.hashing(documents), mode, fraction, long):
        count[piece.split] += piece.ends
        size[piece.split] += piece.size
        if piece.split == "validation":
            compressed += len(gzip.compress(piece.text.encode()))
    compressed += len(gzip.flush())
    return Survey(mode, count, size, long, digest.shortest, str(digest), 8 * compressed / max(1, size["validation"]))


def survey_from_json(value: dict[str, Any]) -> Survey:
    """The survey of ``dataclasses.asdict(survey)``, read back from JSON."""
    return Survey(**value)


def _blocks(text: str, size: int) -> Iterator[str]:
    """Blocks of at most ``size`` characters, each ending after a line if it has one."""
    start = 0
    while start < len(text):
        end = start + size
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end

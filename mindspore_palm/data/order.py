"""The order in which a run sees its text, as a record: a change midway leaves nothing out and repeats nothing.

A run is one segment until a setting that decides its batches is changed by hand. Then another segment begins, which
knows where in the text the one before ended. A batch is a function of its step and of these segments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mindspore_palm.data.tokens import TokenFile, shift
from mindspore_palm.random import permute

Ranges = tuple[tuple[int, int], ...]
"""Rising (from, up to) of sequences."""
MARKED_AT_ONCE = 2**20  # sequences
BLOCK = 4096  # sequences whose remaining ones are counted together


@dataclass(frozen=True)
class Segment:
    """Steps of a run whose batches follow one rule."""

    step: int
    """The first of them; steps count from 0."""
    ramp: Ranges
    """(first step, sequences) of each batch size, as ``TrainConfig.batch_ramp``."""
    seq_len: int
    """Tokens of a sequence."""
    seed: int
    """With the epoch, decides the order."""
    position: int = 0
    """Sequences of its order that are over when it begins."""
    rest_of: int | None = None
    """Set where another order begins: it has the rest of the epoch of the order before, from this position on, and
    after it whole epochs. None: the order of the segment before, or the first order of a text."""
    left_out: Ranges = ()
    """With ``rest_of``: ranges of that rest, in the order before, that no step takes."""
    ahead: Ranges = ()
    """With ``rest_of``: ranges of the epochs after the rest that no step takes, counted from the first of them."""
    text: str = ""
    """Set where the run was given another text: names its content. Its first epoch begins here."""
    epoch: int = 0
    """In which the order begins."""

    @staticmethod
    def from_json(values: dict[str, Any]) -> Segment:
        """What ``asdict`` gave, as it was or read from JSON."""
        ranges = {name: tuple((a, b) for a, b in values.get(name, ())) for name in ("ramp", "left_out", "ahead")}
        known = {name: values[name] for name in Segment.__dataclass_fields__ if name in values}
        return Segment(**{**known, **ranges})


def order_name(segments: Sequence[Segment]) -> str:
    """Names the order of the last segment by all that decides it; the first order of a run is called ''."""
    name = ""
    for before, segment in pairwise(segments):
        if segment.text or segment.rest_of is not None:
            origin = [] if segment.text else [name, before.seq_len, before.seed]
            rule = {key: value for key, value in asdict(segment).items() if key not in ("step", "ramp", "position")}
            name = hashlib.sha256(json.dumps([origin, rule], sort_keys=True).encode()).hexdigest()[:16]
    return name


def taken(segment: Segment, step: int) -> int:
    """Sequences that the steps of a segment before ``step`` take together."""
    ends = [start for start, _ in segment.ramp[1:]] + [step]
    return sum(
        size * max(0, min(end, step) - max(start, segment.step))
        for (start, size), end in zip(segment.ramp, ends, strict=True)
    )


def sizes_from(ramp: Sequence[tuple[int, int]], step: int) -> list[int]:
    """The batch sizes of a ramp that a step from ``step`` on has."""
    ends = [start for start, _ in ramp[1:]]
    return [size for (_, size), end in zip(ramp, [*ends, None], strict=True) if end is None or end > step]


class Order:
    """Sequences in the order of the epochs.

    Args:
        whole: the text, or the pairs.
        seq_len: tokens of a sequence.
        seed: with the epoch, decides the order.
        epoch: the first one.
        first: what is left of it; None for all.
    """

    def __init__(self, whole: Any, seq_len: int, seed: int, epoch: int = 0, first: Any = None) -> None:
        self.whole, self.seq_len, self.seed, self.epoch = whole, seq_len, seed, epoch
        self.count = whole.sequences(seq_len)
        self.first = whole if first is None else first
        self.first_count = self.first.sequences(seq_len)

    def locate(self, position: int) -> tuple[Any, int, int, int]:
        """Of a position: the sequences that its epoch has, their number, the epoch, and the place in it."""
        if position < self.first_count or not self.count:
            return self.first, self.first_count, self.epoch, position
        epoch, place = divmod(position - self.first_count, self.count)
        return self.whole, self.count, self.epoch + 1 + epoch, place

    def numbers(self, position: int, count: int) -> Iterator[tuple[Any, np.ndarray]]:
        """The sequences at positions, as runs of (sequences, numbers) of one epoch each."""
        end = position + count
        while position < end:
            source, size, epoch, place = self.locate(position)
            run = min(end - position, size - place)
            yield source, permute(np.arange(place, place + run, dtype=np.int64), size, _key(self.seed, epoch))
            position += run

    def rest(self, position: int, left_out: Ranges) -> Any:
        """What no position before ``position`` had of its epoch, less what is left out."""
        source, size, epoch, place = self.locate(position)
        kept = np.ones(size, bool)
        start = position - place
        for a, b in [(0, place), *((max(a - start, place), min(b - start, size)) for a, b in left_out)]:
            for chunk in range(a, b, MARKED_AT_ONCE):
                places = np.arange(chunk, min(b, chunk + MARKED_AT_ONCE), dtype=np.int64)
                kept[permute(places, size, _key(self.seed, epoch))] = False
        if source.repeats:  # pairs
            return source.only(np.flatnonzero(kept))
        return RestOfText(source, self.seq_len, kept)

    def end_of_epoch(self, position: int) -> int:
        """The position at which the epoch of a position ends."""
        _, size, _, place = self.locate(position)
        return position - place + size


class RestOfText:
    """Text of which some sequences are taken out: what is left, in the order of the text, moves together.

    It may then be cut into sequences of another length. Between two of the old ones that did not stand side by side, a
    new sequence has a seam, as at the border of two documents.

    Args:
        base: the text, or the rest of one.
        seq_len: tokens of the sequences that ``kept`` counts; what lies after the last of them is kept.
        kept: bool [sequences], which stay.
    """

    repeats = False

    def __init__(self, base: TokenFile | RestOfText, seq_len: int, kept: np.ndarray) -> None:
        self.base, self.seq_len = base, seq_len
        padded = np.pad(kept, (0, -len(kept) % BLOCK))
        self._bits = np.packbits(padded)  # one bit for each: a text may have hundreds of millions
        self._before = np.concatenate([[0], np.cumsum(padded.reshape(-1, BLOCK).sum(axis=1, dtype=np.int64))])
        self._kept_tokens = int(self._before[-1]) * seq_len
        self._tail = len(kept) * seq_len  # where in the base the text after the last sequence begins

    def __len__(self) -> int:
        """Tokens."""
        return self._kept_tokens + len(self.base) - self._tail

    def sequences(self, seq_len: int) -> int:
        """How many sequences of ``seq_len`` tokens there are; the tail that does not fill one is dropped."""
        return len(self) // seq_len

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens ``start`` to ``stop``, int32."""
        parts = []
        while start < stop:
            if start >= self._kept_tokens:
                at = self._tail + start - self._kept_tokens
                parts.append(_read(self.base, at, at + stop - start))
                break
            number, within = divmod(start, self.seq_len)
            run = min(stop - start, self.seq_len - within)
            at = self._number(number) * self.seq_len + within
            parts.append(_read(self.base, at, at + run))
            start += run
        return np.concatenate([np.empty(0, np.int32), *parts])

    def examples(self, indices: Sequence[int] | np.ndarray, seq_len: int, eod: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of sequences by their numbers, int32 [n, seq_len] each; see ``shift``."""
        rows = [self.read(int(i) * seq_len, (int(i) + 1) * seq_len) for i in indices]
        return shift(np.array(rows, np.int32).reshape(len(rows), seq_len), eod)

    def real_tokens(self, indices: Sequence[int] | np.ndarray, seq_len: int) -> int:
        """Targets of sequences by their numbers: all."""
        return len(indices) * seq_len

    def _number(self, kept: int) -> int:
        """Which sequence of the base is the one of this number among those that stay."""
        block = int(np.searchsorted(self._before, kept, "right")) - 1
        bits = np.unpackbits(self._bits[block * BLOCK // 8 : (block + 1) * BLOCK // 8])
        return block * BLOCK + int(np.flatnonzero(bits)[kept - int(self._before[block])])


def merge_ranges(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges as rising ones that do not touch; empty ones are left away."""
    out: list[tuple[int, int]] = []
    for start, end in sorted((a, b) for a, b in ranges if a < b):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def _read(base: TokenFile | RestOfText, start: int, stop: int) -> np.ndarray:
    return base.read(start, stop) if isinstance(base, RestOfText) else np.asarray(base.tokens[start:stop], np.int32)


def _key(seed: int, epoch: int) -> int:
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")

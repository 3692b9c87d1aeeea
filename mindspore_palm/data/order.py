"""The order in which a run sees its text, recorded as segments: a change midway skips nothing and repeats nothing.

A run is a single segment until a setting that determines its batches is changed by hand. The change starts another
segment, which records where in the text the previous one ended. A batch is a function of its step and these segments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mindspore_palm.data.mixture import Mixture
from mindspore_palm.data.tokens import TokenFile, shift
from mindspore_palm.random import key64, permute

Ranges = tuple[tuple[int, int], ...]
"""Ascending ranges (from, up to) of sequences."""
MARKED_AT_ONCE = 2**20  # sequences: bounds the memory of ``Order.rest``
COUNT_BLOCK = 4096  # sequences: ``RemainingText`` stores one count of kept sequences for this many


@dataclass(frozen=True)
class Segment:
    """Consecutive steps of a run whose batches follow the same settings. Checkpoints store it as JSON."""

    step: int
    """First step; steps count from 0."""
    ramp: Ranges
    """(first step, sequences) of each batch size, as ``TrainConfig.batch_ramp``."""
    seq_len: int
    """Tokens per sequence."""
    seed: int
    """Determines the order, together with the epoch."""
    position: int = 0
    """Position in its order at which the segment starts."""
    rest_of: int | None = None
    """Set if this segment starts another order: the rest of the previous order's epoch, from this position on, then
    full epochs. None: the segment continues the previous order, or starts the first order of a text."""
    left_out: Ranges = ()
    """With ``rest_of``: ranges of that rest that no step takes, as positions in the previous order."""
    ahead: Ranges = ()
    """With ``rest_of``: ranges of the full epochs that no step takes, counted from the start of the first one."""
    text: str = ""
    """Set if the run was given another text, whose first epoch starts here: identifies its content."""
    epoch: int = 0
    """Epoch in which the order starts."""

    @staticmethod
    def from_json(values: dict[str, Any]) -> Segment:
        """The segment of ``asdict(segment)``, directly or read back from JSON."""
        ranges = {name: tuple((a, b) for a, b in values.get(name, ())) for name in ("ramp", "left_out", "ahead")}
        known = {name: values[name] for name in Segment.__dataclass_fields__ if name in values}
        return Segment(**{**known, **ranges})


def order_name(segments: Sequence[Segment]) -> str:
    """Name of the last segment's order: a hash of everything that determines it; '' for the first order of a run."""
    name = ""
    for before, segment in pairwise(segments):
        if segment.text or segment.rest_of is not None:
            origin = [] if segment.text else [name, before.seq_len, before.seed]
            rule = {key: value for key, value in asdict(segment).items() if key not in ("step", "ramp", "position")}
            name = hashlib.sha256(json.dumps([origin, rule], sort_keys=True).encode()).hexdigest()[:16]
    return name


def sequences_taken(segment: Segment, step: int) -> int:
    """Number of sequences that a segment's steps before ``step`` take."""
    ends = [start for start, _ in segment.ramp[1:]] + [step]
    return sum(
        size * max(0, min(end, step) - max(start, segment.step))
        for (start, size), end in zip(segment.ramp, ends, strict=True)
    )


def sizes_from(ramp: Sequence[tuple[int, int]], step: int) -> list[int]:
    """Batch sizes of a ramp that apply to ``step`` or any later step."""
    ends = [start for start, _ in ramp[1:]]
    return [size for (_, size), end in zip(ramp, [*ends, None], strict=True) if end is None or end > step]


class Order:
    """Sequences in the order of the epochs.

    Args:
        full: the text, or the pairs.
        seq_len: tokens per sequence.
        seed: determines the order, together with the epoch.
        epoch: number of the first epoch.
        first: what is left of the first epoch; None for all of it.
    """

    def __init__(self, full: Any, seq_len: int, seed: int, epoch: int = 0, first: Any = None) -> None:
        self.full, self.seq_len, self.seed, self.epoch = full, seq_len, seed, epoch
        self.count = full.sequences(seq_len)
        self.first = full if first is None else first
        self.first_count = self.first.sequences(seq_len)

    def locate(self, position: int) -> tuple[Any, int, int, int]:
        """Epoch of a position: its sequences, their count, the epoch's number, and the offset of the position in it."""
        if position < self.first_count or not self.count:
            return self.first, self.first_count, self.epoch, position
        epoch, offset = divmod(position - self.first_count, self.count)
        return self.full, self.count, self.epoch + 1 + epoch, offset

    def numbers(self, position: int, count: int) -> Iterator[tuple[Any, np.ndarray]]:
        """Sequences at ``count`` positions, as runs of (source, indices) of one epoch each."""
        end = position + count
        while position < end:
            source, size, epoch, offset = self.locate(position)
            run = min(end - position, size - offset)
            yield source, permute(np.arange(offset, offset + run, dtype=np.int64), size, _key(self.seed, epoch))
            position += run

    def rest(self, position: int, left_out: Ranges) -> Any:
        """Sequences of a position's epoch that come at this position or later, without those in ``left_out``."""
        source, size, epoch, offset = self.locate(position)
        kept = np.ones(size, bool)
        start = position - offset
        for a, b in [(0, offset), *((max(a - start, offset), min(b - start, size)) for a, b in left_out)]:
            for chunk in range(a, b, MARKED_AT_ONCE):
                offsets = np.arange(chunk, min(b, chunk + MARKED_AT_ONCE), dtype=np.int64)
                kept[permute(offsets, size, _key(self.seed, epoch))] = False
        if source.repeats:  # pairs
            return source.only(np.flatnonzero(kept))
        return RemainingText(source, self.seq_len, kept)

    def end_of_epoch(self, position: int) -> int:
        """Position at which the epoch of a position ends."""
        _, size, _, offset = self.locate(position)
        return position - offset + size


class RemainingText:
    """Text without some of its sequences: the kept ones, concatenated in the order of the text.

    The result can be split into sequences of another length. Where two kept sequences were not adjacent, a new sequence
    has a seam, as at a document boundary.

    Args:
        base: the text, or the remainder of one.
        seq_len: tokens per sequence of ``kept``; tokens after the last full sequence are kept.
        kept: bool [sequences], True for those that stay.
    """

    repeats = False

    def __init__(self, base: TokenFile | Mixture | RemainingText, seq_len: int, kept: np.ndarray) -> None:
        self.base, self.seq_len = base, seq_len
        padded = np.pad(kept, (0, -len(kept) % COUNT_BLOCK))
        self._bits = np.packbits(padded)  # one bit per sequence: a text may have hundreds of millions
        self._before = np.concatenate([[0], np.cumsum(padded.reshape(-1, COUNT_BLOCK).sum(axis=1, dtype=np.int64))])
        self._kept_tokens = int(self._before[-1]) * seq_len
        self._tail = len(kept) * seq_len  # where in the base the tokens after the last full sequence start

    def __len__(self) -> int:
        """Number of tokens."""
        return self._kept_tokens + len(self.base) - self._tail

    def sequences(self, seq_len: int) -> int:
        """Number of sequences of ``seq_len`` tokens; an incomplete last one is dropped."""
        return len(self) // seq_len

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens ``start`` to ``stop``, int32."""
        parts = []
        while start < stop:
            if start >= self._kept_tokens:
                at = self._tail + start - self._kept_tokens
                parts.append(self.base.read(at, at + stop - start))
                break
            number, within = divmod(start, self.seq_len)
            run = min(stop - start, self.seq_len - within)
            at = self._number(number) * self.seq_len + within
            parts.append(self.base.read(at, at + run))
            start += run
        return np.concatenate([np.empty(0, np.int32), *parts])

    def examples(self, indices: Sequence[int] | np.ndarray, seq_len: int, eod: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the sequences at ``indices``: int32 [n, seq_len] each; see ``shift``."""
        rows = [self.read(int(i) * seq_len, (int(i) + 1) * seq_len) for i in indices]
        return shift(np.array(rows, np.int32).reshape(len(rows), seq_len), eod)

    def real_tokens(self, indices: Sequence[int] | np.ndarray, seq_len: int) -> int:
        """Number of their targets; the loss counts all of them."""
        return len(indices) * seq_len

    def _number(self, kept: int) -> int:
        """Index in the base of the kept sequence number ``kept``."""
        block = int(np.searchsorted(self._before, kept, "right")) - 1
        bits = np.unpackbits(self._bits[block * COUNT_BLOCK // 8 : (block + 1) * COUNT_BLOCK // 8])
        return block * COUNT_BLOCK + int(np.flatnonzero(bits)[kept - int(self._before[block])])


def merge_ranges(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in ascending order, with those that touch or overlap merged and empty ones removed."""
    out: list[tuple[int, int]] = []
    for start, end in sorted((a, b) for a, b in ranges if a < b):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def _key(seed: int, epoch: int) -> int:
    return key64(f"{seed} {epoch}")

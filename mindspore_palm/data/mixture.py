"""A mixture of texts with weights, as one text: an epoch holds the tokens of each source in proportion to its weight.

The epoch is a virtual text. Its first part is source 0, repeated as often as its weight asks, then source 1, and so on.
Sequences are cut from it and shuffled like those of any text (``Batches``), so a batch stays a function of seed and
step, and nothing is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np

from mindspore_palm.data.tokens import TokenFile, shift


def tokens_by_weight(lengths: Sequence[int], weights: Sequence[float], repeat: bool) -> list[int]:
    """Tokens of each source in one epoch of a mixture, in proportion to the weights.

    With p_i = weight_i / sum of weights, source i gives floor(p_i N) tokens of an epoch of N:

        repeat      N = max_i length_i / p_i    every source is seen in full, and all but one of them repeat
        otherwise   N = min_i length_i / p_i    no token is taken twice, and all but one of them give a part

    Args:
        lengths: tokens of each source.
        weights: above 0, of any sum.
        repeat: which of the two.
    """
    shares = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]  # exact, on any machine
    sizes = [length / share for length, share in zip(lengths, shares, strict=True)]
    total = max(sizes) if repeat else min(sizes)
    return [int(share * total) for share in shares]


class Mixture:
    """Sources one after another, each with as many tokens as it has in an epoch; a source with fewer starts over.

    A sequence that spans the end of a source has a seam there, as at a document's end: every source ends with [eod].

    Args:
        sources: texts.
        counts: tokens of each one, at least 1 in total.
    """

    repeats = False

    def __init__(self, sources: Sequence[TokenFile], counts: Sequence[int]) -> None:
        self.sources, self.counts = list(sources), list(counts)
        self._ends = np.cumsum(np.array(self.counts, np.int64))

    def __len__(self) -> int:
        """Number of tokens of an epoch."""
        return int(self._ends[-1])

    def sequences(self, seq_len: int) -> int:
        """Number of sequences of ``seq_len`` tokens; an incomplete last one is dropped."""
        return len(self) // seq_len

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens ``start`` to ``stop`` of the epoch, int32."""
        parts = [np.empty(0, np.int32)]
        while start < stop:
            number = int(np.searchsorted(self._ends, start, "right"))
            source, end = self.sources[number], int(self._ends[number])
            offset = (start - (end - self.counts[number])) % len(source)
            run = min(stop - start, end - start, len(source) - offset)
            parts.append(source.read(offset, offset + run))
            start += run
        return np.concatenate(parts)

    def examples(self, indices: Sequence[int] | np.ndarray, seq_len: int, eod: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the sequences at ``indices``: int32 [n, seq_len] each; see ``shift``."""
        rows = [self.read(int(i) * seq_len, (int(i) + 1) * seq_len) for i in indices]
        return shift(np.array(rows, np.int32).reshape(len(rows), seq_len), eod)

    def real_tokens(self, indices: Sequence[int] | np.ndarray, seq_len: int) -> int:
        """Number of their targets; the loss counts all of them."""
        return len(indices) * seq_len

    def tokens_of(self, indices: np.ndarray, seq_len: int) -> np.ndarray:
        """Tokens that each source gives to the sequences at ``indices``: int64 [sources]."""
        starts = np.asarray(indices, np.int64) * seq_len
        begins = self._ends - np.array(self.counts, np.int64)
        return np.array(
            [
                np.clip(np.minimum(starts + seq_len, end) - np.maximum(starts, begin), 0, None).sum()
                for begin, end in zip(begins, self._ends, strict=True)
            ],
            np.int64,
        )


def reached(runs: Iterable[tuple[object, np.ndarray]], seq_len: int) -> tuple[Mixture, np.ndarray] | None:
    """The mixture that sequences were taken from, and the tokens that each of its sources gave; None for other text.

    Args:
        runs: (source, indices) of the sequences, as ``Batches.taken`` yields them.
        seq_len: tokens per sequence.
    """
    mixture, total = None, np.zeros(0, np.int64)
    for source, indices in runs:
        if isinstance(source, Mixture):
            tokens = source.tokens_of(indices, seq_len)
            mixture, total = source, total + tokens if mixture else tokens
    return (mixture, total) if mixture else None

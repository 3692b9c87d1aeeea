"""The one function (seed, step) -> batch, and the held-out batches.

No state: a run goes on by its step, and by the list of what it left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from mindspore_palm.data.shuffle import permute
from mindspore_palm.errors import UserError


class Sequences(Protocol):
    """What batches are made of: sequences of text (``TokenFile``), or pairs of a prompt and a target (``Pairs``)."""

    repeats: bool
    """Whether one batch may take a sequence twice, where there are few of them."""

    def __len__(self) -> int:
        """Tokens."""

    def sequences(self, seq_len: int) -> int:
        """How many there are."""

    def examples(self, indices: Sequence[int] | np.ndarray, seq_len: int, eod: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets by their numbers, int32 [n, seq_len] each; a negative target is no real token."""

    def real_tokens(self, indices: Sequence[int] | np.ndarray, seq_len: int) -> int:
        """How many of their targets are real."""


class Batches:
    """Training batches: every sequence once an epoch, in an order of its own for each epoch and seed.

    The shuffle is over the whole set and computed, not stored, so that any step costs the same, and any number of
    workers read their own rows of the same batch.
    """

    def __init__(
        self,
        tokens: Sequences,
        seq_len: int,
        eod: int,
        ramp: list[tuple[int, int]],
        seed: int,
        skipped: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Plans batches; reads nothing.

        Args:
            tokens: the train split.
            seq_len: tokens of a sequence.
            eod: the token that stands before the first token of every sequence.
            ramp: (first step, sequences) of each batch size, from step 0 on and rising, as ``TrainConfig.batch_ramp``.
            seed: with the epoch, decides the order.
            skipped: rising ranges (from, up to) of sequences, in the order of the epochs, that are left out.

        Raises:
            UserError: there are fewer sequences than the largest batch takes.
        """
        self.tokens, self.seq_len, self.eod, self.ramp, self.seed = tokens, seq_len, eod, list(ramp), seed
        self.skipped = list(skipped)
        self.count = tokens.sequences(seq_len)
        largest = max(size for _, size in self.ramp)
        if self.count < largest and not tokens.repeats:
            raise UserError(
                f"the training text gives {self.count} sequences of data.seq_len = {seq_len} tokens, fewer than a "
                f"batch of train.batch_size = {largest}; lower train.batch_size or data.seq_len, or bring more text"
            )

    def batch_size(self, step: int) -> int:
        """Sequences of a step; steps count from 0.

        Raises:
            ValueError: the step is negative.
        """
        if step < 0:
            raise ValueError(f"step {step} is negative; steps count from 0")
        return next(size for start, size in reversed(self.ramp) if start <= step)

    def sequences_before(self, step: int) -> int:
        """Sequences that all steps before ``step`` take together."""
        ends = [start for start, _ in self.ramp[1:]] + [step]
        return sum(
            size * (min(end, step) - start) for (start, size), end in zip(self.ramp, ends, strict=True) if start < step
        )

    def position(self, step: int) -> int:
        """Where in the order of the epochs a step begins: sequences before it, with those that are left out."""
        return self._place(self.sequences_before(step))

    def epoch(self, step: int) -> int:
        """The epoch that a step begins in, from 0."""
        return self.position(step) // self.count

    def _place(self, number: int) -> int:
        """Where a sequence that is trained on stands in the order of the epochs; ``number`` counts them from 0."""
        for start, end in self.skipped:
            if number >= start:
                number += end - start
        return number

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The batch of a step.

        Returns:
            inputs and targets, int32 [batch, seq_len] each. The targets are the sequence, and the inputs the same moved
            right by one behind [eod], as T5X does: every token of the text is predicted exactly once an epoch.
        """
        return self.slice(step, 0, self.batch_size(step))

    def slice(self, step: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``first`` to ``first + count`` of ``batch(step)``, for a worker that needs no others.

        Raises:
            ValueError: the batch has no such rows.
        """
        return self.tokens.examples(self._numbers(step, first, count), self.seq_len, self.eod)

    def real_tokens(self, step: int) -> int:
        """Targets of ``batch(step)`` that are real, on all workers."""
        return self.tokens.real_tokens(self._numbers(step, 0, self.batch_size(step)), self.seq_len)

    def _numbers(self, step: int, first: int, count: int) -> np.ndarray:
        """Which sequences the rows are."""
        size = self.batch_size(step)
        if first < 0 or count < 0 or first + count > size:
            raise ValueError(f"rows {first} to {first + count} are outside the {size} rows of step {step}")
        number = self.sequences_before(step) + first
        end = number + count
        indices = []
        while number < end:  # a batch may hold the end of one epoch and the start of the next, or the ends of a gap
            position = self._place(number)
            epoch, place = divmod(position, self.count)
            gap = next((start - position for start, _ in self.skipped if start > position), count)
            taken = min(end - number, self.count - place, gap)
            places = np.arange(place, place + taken, dtype=np.int64)
            indices.append(permute(places, self.count, self._key(epoch)))
            number += taken
        return np.concatenate([np.empty(0, np.int64), *indices])

    def _key(self, epoch: int) -> int:
        digest = hashlib.blake2b(f"{self.seed} {epoch}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")


def validation_batches(
    tokens: Sequences, seq_len: int, eod: int, batch_size: int, limit: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Held-out batches, in the order of the text, always the same.

    Args:
        tokens: the validation split.
        seq_len: tokens of a sequence.
        eod: the token that stands before the first token of every sequence.
        batch_size: sequences of a batch.
        limit: at most so many sequences, spread evenly over the whole split; None takes all.

    Returns:
        An iterator of inputs and targets, int32 [batch_size, seq_len] each. The last batch is filled up with rows whose
        targets are -1, which the loss leaves out.

    Raises:
        UserError: there is no sequence. Raised by the call, not by the first step of the iterator.
    """
    count = tokens.sequences(seq_len)
    if count < 1:
        raise UserError(
            f"the validation text is {len(tokens)} tokens, 0 sequences of data.seq_len = {seq_len}; "
            "raise data.validation_fraction, lower data.seq_len, or bring more text"
        )
    taken = count if limit is None else min(limit, count)
    return _validation_batches(tokens, seq_len, eod, batch_size, [i * count // taken for i in range(taken)])


def _validation_batches(
    tokens: Sequences, seq_len: int, eod: int, batch_size: int, chosen: Sequence[int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(chosen), batch_size):
        inputs, targets = tokens.examples(chosen[start : start + batch_size], seq_len, eod)
        missing = batch_size - len(inputs)
        if missing:
            inputs = np.concatenate([inputs, np.full((missing, seq_len), eod, np.int32)])
            targets = np.concatenate([targets, np.full((missing, seq_len), -1, np.int32)])
        yield inputs, targets

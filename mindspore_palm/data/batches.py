"""The one function (seed, step) -> batch, and the held-out batches.

No state: a run resumes by its step, by the list of what it left out, and by the record of what was changed midway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from mindspore_palm.data.order import Order, Segment, merge_ranges, order_name, sizes_from, taken
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
        ramp: Sequence[tuple[int, int]],
        seed: int,
        skipped: Sequence[tuple[int, int]] = (),
        segments: Sequence[Segment] = (),
    ) -> None:
        """Plans batches; reads nothing.

        Args:
            tokens: the train split.
            seq_len: tokens of a sequence.
            eod: the token that stands before the first token of every sequence.
            ramp: (first step, sequences) of each batch size, from step 0 on and rising, as ``TrainConfig.batch_ramp``.
            seed: with the epoch, decides the order.
            skipped: rising ranges (from, up to) of sequences, in the order of the epochs, that are left out.
            segments: the record of a run whose batches were changed midway, the oldest first; the last one has
                ``ramp``, ``seq_len`` and ``seed``. Empty for a run that was not. ``skipped`` counts in its order.

        Raises:
            UserError: there are fewer sequences than the largest batch takes.
        """
        self.tokens, self.seq_len, self.eod, self.ramp, self.seed = tokens, seq_len, eod, list(ramp), seed
        self.segments = tuple(segments) or (Segment(0, tuple((a, b) for a, b in ramp), seq_len, seed),)
        self.order, first = _last_order(tokens, self.segments)
        self._segments = self.segments[first:]  # those of the last order
        self._starts = [(self.sequences_before(s.step), s) for s in reversed(self._segments)]
        rest = self.order.first_count
        ahead = [(a + rest, b + rest) for a, b in self._segments[0].ahead]
        self.skipped = merge_ranges([*skipped, *ahead])
        self.count = self.order.count
        largest = max(sizes_from(ramp, self.segments[-1].step))
        if self.count < largest and not tokens.repeats:
            raise UserError(
                f"the training text gives {self.count} sequences of data.seq_len = {seq_len} tokens, fewer than a "
                f"batch of train.batch_size = {largest}; lower train.batch_size or data.seq_len, or bring more text"
            )

    @property
    def order_name(self) -> str:
        """Names the order in which positions count."""
        return order_name(self.segments)

    def batch_size(self, step: int) -> int:
        """Sequences of a step; steps count from 0.

        Raises:
            ValueError: the step is negative.
        """
        if step < 0:
            raise ValueError(f"step {step} is negative; steps count from 0")
        segment = next(s for s in reversed(self.segments) if s.step <= step)
        return next(size for start, size in reversed(segment.ramp) if start <= step)

    def sequences_before(self, step: int) -> int:
        """Sequences that all steps before ``step`` take together."""
        ends = [segment.step for segment in self.segments[1:]] + [step]
        return sum(taken(segment, min(end, step)) for segment, end in zip(self.segments, ends, strict=True))

    def nominal_position(self, step: int) -> int:
        """Where in the order of the epochs a step begins if nothing is left out after its segment begins.

        Raises:
            ValueError: the step is of an earlier order.
        """
        segment = self._segment(step)
        return segment.position + taken(segment, step)

    def position(self, step: int) -> int:
        """Where in the order of the epochs a step begins: sequences before it, with those that are left out.

        Raises:
            ValueError: the step is of an earlier order.
        """
        self._segment(step)
        return self._position_of(self.sequences_before(step))

    def epoch(self, step: int) -> int:
        """The epoch that a step begins in, from 0."""
        return self.order.locate(self.position(step))[2]

    def segments_after_change(
        self, step: int, ramp: Sequence[tuple[int, int]], seq_len: int, seed: int
    ) -> tuple[Segment, ...]:
        """The record of a run that takes ``step`` and later ones with other settings, on the text that is left.

        Args:
            step: the first with them; behind all segments of this record.
            ramp: as for ``Batches``.
            seq_len: as for ``Batches``.
            seed: as for ``Batches``.
        """
        last, position = self.segments[-1], self.position(step)
        rule = {"step": step, "ramp": tuple((a, b) for a, b in ramp), "seq_len": seq_len, "seed": seed}
        same_sequences = seq_len == last.seq_len or self.tokens.repeats  # no length cuts pairs
        if same_sequences and seed == last.seed:
            same = last.ramp == rule["ramp"] and last.seq_len == seq_len
            return self.segments if same else (*self.segments, Segment(**rule, position=position, epoch=last.epoch))
        end = self.order.end_of_epoch(position)
        left_out = tuple((max(a, position), min(b, end)) for a, b in self.skipped if a < end and b > position)
        # ranges of later epochs, whose sequences are others now: as much text from as far on
        old, new = (1, 1) if same_sequences else (last.seq_len, seq_len)
        later = ((max(0, a - end), b - end) for a, b in self.skipped if b > end)
        ahead = tuple((a * old // new, -(-b * old // new)) for a, b in later)
        epoch = self.order.locate(position)[2]
        return (*self.segments, Segment(**rule, rest_of=position, left_out=left_out, ahead=ahead, epoch=epoch))

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
            ValueError: the batch has no such rows, or the step is of an earlier order.
        """
        empty = np.empty((0, self.seq_len), np.int32)
        parts = [source.examples(rows, self.seq_len, self.eod) for source, rows in self._rows(step, first, count)]
        return tuple(np.concatenate([empty, *(part[side] for part in parts)]) for side in (0, 1))

    def real_tokens(self, step: int) -> int:
        """Targets of ``batch(step)`` that are real, on all workers."""
        rows = self._rows(step, 0, self.batch_size(step))
        return sum(source.real_tokens(numbers, self.seq_len) for source, numbers in rows)

    def _segment(self, step: int) -> Segment:
        """The segment of a step, in the last order."""
        segment = next((s for s in reversed(self._segments) if s.step <= step), None)
        if segment is None:
            raise ValueError(
                f"step {step} is of another order of the text, which ended at step {self._segments[0].step}"
            )
        return segment

    def _position_of(self, number: int) -> int:
        """Where a sequence that is trained on stands in the order of the epochs; ``number`` counts the run's from 0."""
        before, segment = next(pair for pair in self._starts if pair[0] <= number)
        position = segment.position + number - before
        for start, end in self.skipped:
            if end > segment.position and position >= max(start, segment.position):
                position += end - max(start, segment.position)
        return position

    def _rows(self, step: int, first: int, count: int) -> Iterator[tuple[Sequences, np.ndarray]]:
        """Which sequences the rows are."""
        size = self.batch_size(step)
        if first < 0 or count < 0 or first + count > size:
            raise ValueError(f"rows {first} to {first + count} are outside the {size} rows of step {step}")
        self._segment(step)
        number = self.sequences_before(step) + first
        end = number + count
        while number < end:  # a batch may hold the ends of a gap
            position = self._position_of(number)
            gap = next((start - position for start, _ in self.skipped if start > position), count)
            run = min(end - number, gap)
            yield from self.order.numbers(position, run)
            number += run


def _last_order(tokens: Sequences, segments: Sequence[Segment]) -> tuple[Order, int]:
    """The order of the last segment, and the number of the first segment that has it."""
    first = max(number for number, segment in enumerate(segments) if number == 0 or segment.text)
    order = Order(tokens, segments[first].seq_len, segments[first].seed, segments[first].epoch)
    for number, segment in enumerate(segments):
        if number > first and segment.rest_of is not None:
            rest = order.rest(segment.rest_of, segment.left_out)
            order, first = Order(tokens, segment.seq_len, segment.seed, segment.epoch, rest), number
    if order.seq_len != segments[-1].seq_len:  # pairs, which no length cuts
        order = Order(tokens, segments[-1].seq_len, order.seed, order.epoch, order.first)
    return order, first


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

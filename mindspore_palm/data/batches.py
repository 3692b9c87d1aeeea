"""Training batches as a function of (seed, step), and held-out batches.

Batches have no state of their own. A run resumes from three things: its step, the ranges that it skipped, and the
segments that record which settings were changed midway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from mindspore_palm.data.order import Order, Segment, merge_ranges, order_name, sequences_taken, sizes_from
from mindspore_palm.errors import UserError

TAKEN_AT_ONCE = 2**16  # sequences: bounds the memory of ``Batches.taken``


class Sequences(Protocol):
    """Source of batches: sequences of text (``TokenFile``), or pairs of a prompt and a target (``Pairs``)."""

    repeats: bool
    """Whether one batch may contain a sequence twice, if there are fewer sequences than a batch takes."""

    def __len__(self) -> int:
        """Number of tokens."""

    def sequences(self, seq_len: int) -> int:
        """Number of sequences."""

    def examples(self, indices: Sequence[int] | np.ndarray, seq_len: int, eod: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of sequences: int32 [n, seq_len] each; the loss ignores negative targets."""

    def real_tokens(self, indices: Sequence[int] | np.ndarray, seq_len: int) -> int:
        """Number of their targets that the loss counts."""


class Batches:
    """Training batches: every sequence once per epoch, in an order that depends on the seed and the epoch.

    The shuffle covers the full set and is computed, not stored. So every step costs the same, and any number of workers
    can each read their own rows of the same batch.

    A position counts sequences in the order of the epochs, skipped ones included.
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
            seq_len: tokens per sequence.
            eod: the token before the first token of every sequence.
            ramp: (first step, sequences) of each batch size, ascending from step 0, as ``TrainConfig.batch_ramp``.
            seed: determines the order, together with the epoch.
            skipped: ascending ranges (from, up to) of positions that no step takes, in the order of the last segment.
            segments: the segments of a run whose batches were changed midway, oldest first; empty for any other run.
                The last one has the values of ``ramp``, ``seq_len`` and ``seed``.

        Raises:
            UserError: there are fewer sequences than the largest batch takes.
        """
        self.tokens, self.seq_len, self.eod, self.ramp, self.seed = tokens, seq_len, eod, list(ramp), seed
        self.segments = tuple(segments) or (Segment(0, tuple((a, b) for a, b in ramp), seq_len, seed),)
        self.order, first = _last_order(tokens, self.segments)
        self._segments = self.segments[first:]  # the segments that share the last order
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
        """Name of the order that positions refer to."""
        return order_name(self.segments)

    def batch_size(self, step: int) -> int:
        """Number of sequences in a step's batch; steps count from 0.

        Raises:
            ValueError: the step is negative.
        """
        if step < 0:
            raise ValueError(f"step {step} is negative; steps count from 0")
        segment = next(s for s in reversed(self.segments) if s.step <= step)
        return next(size for start, size in reversed(segment.ramp) if start <= step)

    def sequences_before(self, step: int) -> int:
        """Number of sequences that all steps before ``step`` take."""
        ends = [segment.step for segment in self.segments[1:]] + [step]
        return sum(sequences_taken(segment, min(end, step)) for segment, end in zip(self.segments, ends, strict=True))

    def nominal_position(self, step: int) -> int:
        """Position at which a step starts if nothing is skipped after the start of its segment.

        Raises:
            ValueError: the step belongs to an earlier order.
        """
        segment = self._segment(step)
        return segment.position + sequences_taken(segment, step)

    def position(self, step: int) -> int:
        """Position at which a step starts: the number of sequences before it, skipped ones included.

        Raises:
            ValueError: the step belongs to an earlier order.
        """
        self._segment(step)
        return self._position_of(self.sequences_before(step))

    def epoch(self, step: int) -> int:
        """Epoch in which a step starts; epochs count from 0."""
        return self.order.locate(self.position(step))[2]

    def segments_after_change(
        self, step: int, ramp: Sequence[tuple[int, int]], seq_len: int, seed: int
    ) -> tuple[Segment, ...]:
        """Segments of this run if ``step`` and all later steps use other settings, on the text that is left.

        Args:
            step: the first step with the other settings; it comes after the start of every present segment.
            ramp: as for ``Batches``.
            seq_len: as for ``Batches``.
            seed: as for ``Batches``.
        """
        last, position = self.segments[-1], self.position(step)
        rule = Segment(step, tuple((a, b) for a, b in ramp), seq_len, seed)
        same_sequences = seq_len == last.seq_len or self.tokens.repeats  # a pair is one sequence at any length
        if same_sequences and seed == last.seed:
            same = last.ramp == rule.ramp and last.seq_len == seq_len
            return self.segments if same else (*self.segments, replace(rule, position=position, epoch=last.epoch))
        end = self.order.end_of_epoch(position)
        left_out = tuple((max(a, position), min(b, end)) for a, b in self.skipped if a < end and b > position)
        # Later epochs have other sequences now, so their skipped ranges become as much text from as far on.
        old, new = (1, 1) if same_sequences else (last.seq_len, seq_len)
        later = ((max(0, a - end), b - end) for a, b in self.skipped if b > end)
        ahead = tuple((a * old // new, -(-b * old // new)) for a, b in later)
        epoch = self.order.locate(position)[2]
        return (*self.segments, replace(rule, rest_of=position, left_out=left_out, ahead=ahead, epoch=epoch))

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The batch of a step.

        Returns:
            inputs and targets, int32 [batch, seq_len] each. The targets are the sequence. The inputs are the sequence
            shifted right by one, with [eod] first, as in T5X: every token of the text is predicted exactly once per
            epoch.
        """
        return self.slice(step, 0, self.batch_size(step))

    def slice(self, step: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``first`` to ``first + count`` of ``batch(step)``, for a worker that needs only these.

        Raises:
            ValueError: the batch has no such rows, or the step belongs to an earlier order.
        """
        empty = np.empty((0, self.seq_len), np.int32)
        parts = [source.examples(rows, self.seq_len, self.eod) for source, rows in self._rows(step, first, count)]
        inputs, targets = (np.concatenate([empty, *(part[side] for part in parts)]) for side in (0, 1))
        return inputs, targets

    def real_tokens(self, step: int) -> int:
        """Number of targets of ``batch(step)`` that the loss counts, over all workers."""
        rows = self._rows(step, 0, self.batch_size(step))
        return sum(source.real_tokens(numbers, self.seq_len) for source, numbers in rows)

    def taken(self, step: int, most: int) -> Iterator[tuple[Sequences, np.ndarray]]:
        """The last sequences before a step in the order of now, at most ``most``, as (source, indices) of one epoch."""
        start, end = self.sequences_before(self._segments[0].step), self.sequences_before(step)
        start = max(start, end - most)
        while start < end:
            count = min(TAKEN_AT_ONCE, end - start)
            yield from self._sequences(start, count)
            start += count

    def _segment(self, step: int) -> Segment:
        """Segment of a step; the step must belong to the last order."""
        segment = next((s for s in reversed(self._segments) if s.step <= step), None)
        if segment is None:
            raise ValueError(
                f"step {step} belongs to another order of the text, which ended at step {self._segments[0].step}"
            )
        return segment

    def _position_of(self, number: int) -> int:
        """Position of the run's sequence ``number``, counted from 0 over the sequences that are not skipped."""
        before, segment = next(pair for pair in self._starts if pair[0] <= number)
        position = segment.position + number - before
        for start, end in self.skipped:
            if end > segment.position and position >= max(start, segment.position):
                position += end - max(start, segment.position)
        return position

    def _rows(self, step: int, first: int, count: int) -> Iterator[tuple[Sequences, np.ndarray]]:
        """The rows' sequences, as (source, indices) of one epoch each."""
        size = self.batch_size(step)
        if first < 0 or count < 0 or first + count > size:
            raise ValueError(f"rows {first} to {first + count} are outside the {size} rows of step {step}")
        self._segment(step)
        yield from self._sequences(self.sequences_before(step) + first, count)

    def _sequences(self, number: int, count: int) -> Iterator[tuple[Sequences, np.ndarray]]:
        """Sequences of the run from ``number`` on, counted without skipped ones, as (source, indices) of one epoch."""
        end = number + count
        while number < end:  # a batch may span a skipped range
            position = self._position_of(number)
            gap = next((start - position for start, _ in self.skipped if start > position), count)
            run = min(end - number, gap)
            yield from self.order.numbers(position, run)
            number += run


def _last_order(tokens: Sequences, segments: Sequence[Segment]) -> tuple[Order, int]:
    """The order of the last segment, and the index of the first segment in that order."""
    first = max(number for number, segment in enumerate(segments) if number == 0 or segment.text)
    order = Order(tokens, segments[first].seq_len, segments[first].seed, segments[first].epoch)
    for number, segment in enumerate(segments):
        if number > first and segment.rest_of is not None:
            rest = order.rest(segment.rest_of, segment.left_out)
            order, first = Order(tokens, segment.seq_len, segment.seed, segment.epoch, rest), number
    if order.seq_len != segments[-1].seq_len:  # only with pairs: a pair is one sequence at any length
        order = Order(tokens, segments[-1].seq_len, order.seed, order.epoch, order.first)
    return order, first


def validation_batches(
    tokens: Sequences, seq_len: int, eod: int, batch_size: int, limit: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Held-out batches, in the order of the text: the same batches on every call.

    Args:
        tokens: the validation split.
        seq_len: tokens per sequence.
        eod: the token before the first token of every sequence.
        batch_size: sequences per batch.
        limit: the maximum number of sequences, spread evenly over the split; None takes all.

    Returns:
        An iterator of inputs and targets, int32 [batch_size, seq_len] each. The last batch is padded with rows whose
        targets are -1, which the loss ignores.

    Raises:
        UserError: the split has no sequence. The call raises it, before the iterator is used.
    """
    count = tokens.sequences(seq_len)
    if count < 1:
        raise UserError(
            f"the validation text is {len(tokens)} tokens, 0 sequences of data.seq_len = {seq_len}; "
            "raise data.validation_fraction, lower data.seq_len, or bring more text"
        )
    used = count if limit is None else min(limit, count)
    return _validation_batches(tokens, seq_len, eod, batch_size, [i * count // used for i in range(used)])


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

"""Changes midway through a run: its text is recorded as segments, and nothing is skipped or repeated."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mindspore_palm.data.batches import Batches
from mindspore_palm.data.order import Segment, merge_ranges, order_name
from mindspore_palm.data.pairs import Pair, Pairs
from mindspore_palm.data.tokens import TokenWriter

EOD, LENGTH = 1, 16 * 40  # tokens of the text, a multiple of every sequence length tested


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """All tokens are different, so a batch shows which text it has."""
    writer = TokenWriter(tmp_path_factory.mktemp("order") / "t", 1000, EOD)
    writer.add(range(LENGTH), False)
    return writer.finish()


def make(tokens, segments, skipped=()):
    last = segments[-1]
    return Batches(tokens, last.seq_len, EOD, last.ramp, last.seed, skipped, segments)


def tokens_of(batches, steps):
    return np.concatenate([np.empty(0, int), *(batches.batch(step)[1].reshape(-1) for step in steps)])


def first(ramp=((0, 8),), seq_len=8, seed=0):
    return (Segment(0, tuple(ramp), seq_len, seed),)


@pytest.mark.parametrize("size", [16, 4])
def test_another_batch_size_continues_with_the_next_text(size, text):
    """As with ``--accept train.batch_size`` at step 5, where sequence 40 of 80 is next."""
    straight, before = make(text, first()), make(text, first())
    segments = before.segments_after_change(5, [(0, size)], 8, 0)
    after = make(text, segments)
    assert after.position(5) == 40 and after.position(6) == 40 + size
    order = tokens_of(straight, range(10))
    assert np.array_equal(tokens_of(after, range(5)), order[:320])
    later = tokens_of(after, range(5, 5 + 40 // size))
    assert np.array_equal(later, order[320:][: len(later)]) and len(later) >= 256


def test_a_ramp_counts_its_steps_from_the_start_of_the_run(text):
    segments = make(text, first()).segments_after_change(5, [(0, 2), (7, 4)], 8, 0)
    after = make(text, segments)
    assert [after.batch_size(step) for step in (4, 5, 6, 7, 8)] == [8, 2, 2, 4, 4]
    assert [after.position(step) for step in (4, 5, 6, 7, 8)] == [32, 40, 42, 44, 48]
    assert after.sequences_before(8) == 48


@pytest.mark.parametrize(("seq_len", "seed"), [(4, 0), (16, 0), (8, 1), (16, 3)])
def test_another_sequence_length_or_seed_uses_the_rest_of_the_epoch(seq_len, seed, text):
    before = make(text, first())
    segments = before.segments_after_change(3, [(0, 8)], seq_len, seed)
    after = make(text, segments)
    seen = tokens_of(before, range(3))
    steps = (LENGTH - len(seen)) // (8 * seq_len)
    rest = tokens_of(after, range(3, 3 + steps))
    assert not set(seen) & set(rest) and len(set(rest)) == len(rest)
    assert LENGTH - len(seen) - len(rest) < 8 * seq_len
    assert after.epoch(3) == 0
    # the next epoch is complete
    left = tokens_of(after, range(3, 3 + 300))[len(set(range(LENGTH)) - set(seen)) // seq_len * seq_len :][:LENGTH]
    assert np.array_equal(np.sort(left), np.arange(LENGTH))


def test_a_sequence_of_half_the_length_has_no_seam(text):
    after = make(text, make(text, first()).segments_after_change(3, [(0, 8)], 4, 0))
    assert (np.diff(after.batch(3)[1]) == 1).all()


def test_adjacent_sequences_stay_adjacent(text):
    """After one step, most longer sequences have no seam."""
    after = make(text, make(text, first()).segments_after_change(1, [(0, 4)], 16, 0))
    seams = np.concatenate([np.diff(after.batch(step)[1]).reshape(-1) for step in range(1, 9)]) != 1
    assert seams.mean() < 0.02


def test_workers_read_rows_of_the_same_batch(text):
    after = make(text, make(text, first()).segments_after_change(5, [(0, 8)], 16, 0), [(3, 6)])
    for step in (5, 6, 7, 8, 9):
        parts = [after.slice(step, row, 2)[1] for row in (0, 2, 4, 6)]
        assert np.array_equal(np.concatenate(parts), after.batch(step)[1])
        assert after.real_tokens(step) == 8 * 16


def test_steps_of_an_earlier_order_are_not_guessed(text):
    after = make(text, make(text, first()).segments_after_change(3, [(0, 8)], 16, 0))
    with pytest.raises(ValueError, match="another order of the text, which ended at step 3"):
        after.position(2)


def test_a_record_survives_json(text):
    segments = make(text, first(), [(30, 34), (90, 95)]).segments_after_change(3, [(0, 4), (9, 8)], 16, 2)
    again = tuple(Segment.from_json(json.loads(json.dumps(asdict(segment)))) for segment in segments)
    assert again == segments and order_name(again) == order_name(segments) != ""


def test_skipped_text_stays_skipped_in_another_order(text):
    """Ranges in this epoch stay exact; those in later epochs become as much text from as far on."""
    skipped = [(30, 34), (78, 90)]  # of 80 per epoch, 24 of which three steps have taken
    out = tokens_of(make(text, first(((0, 1),))), [*range(30, 34), 78, 79])
    after = make(text, make(text, first(), skipped).segments_after_change(3, [(0, 8)], 4, 0))
    seen = tokens_of(make(text, first()), range(3))
    left = (LENGTH - len(seen) - len(out)) // 4
    trained = tokens_of(after, range(3, 3 + left // 8))
    assert not set(trained) & (set(out) | set(seen)) and len(set(trained)) == len(trained)
    assert after.skipped == [(left, left + 20)]  # 10 sequences of twice the length


def test_pairs_are_one_sequence_at_any_length():
    pairs = Pairs([Pair(np.array([2], np.int32), np.array([n + 10, EOD], np.int32)) for n in range(24)])
    before = Batches(pairs, 8, EOD, [(0, 4)], 0)
    longer = before.segments_after_change(2, [(0, 4)], 12, 0)
    assert order_name(longer) == "" and make(pairs, longer).batch(2)[0].shape == (4, 12)
    straight, after = (
        {int(t) for s in range(2, 6) for t in b.batch(s)[1][:, 1]} for b in (before, make(pairs, longer))
    )
    assert straight == after
    other = make(pairs, before.segments_after_change(2, [(0, 4)], 8, 5))
    seen = {int(t) for s in range(2) for t in before.batch(s)[1][:, 1]}
    assert {int(t) for s in range(2, 6) for t in other.batch(s)[1][:, 1]} == set(range(10, 34)) - seen


class Run:
    """Model of a run's text: counts how often it has trained on each token."""

    def __init__(self, text):
        self.text, self.step, self.ramp, self.seq_len, self.seed = text, 0, ((0, 3),), 8, 0
        self.segments, self.skips = first(self.ramp), {}
        self.counts, self.out, self.lost = Counter(), 0, 0
        self.saved = {0: self.state()}

    def state(self):
        record = json.dumps([asdict(segment) for segment in self.segments])
        return self.step, record, self.counts.copy(), self.lost

    def batches(self):
        return make(self.text, self.segments, merge_ranges(self.skips.get(order_name(self.segments), [])))

    def resume(self, step):
        """Resumes from a checkpoint with the present settings."""
        self.step, record, counts, self.lost = self.saved[step]
        self.saved = {s: state for s, state in self.saved.items() if s <= step}
        self.counts = counts.copy()
        self.segments = tuple(Segment.from_json(values) for values in json.loads(record))
        if self.step == 0:
            self.segments = first(self.ramp, self.seq_len, self.seed)
            ranges = self.skips.get("", [])  # of sequences, which may be longer now
            self.out = max(self.out, sum(b - a for a, b in ranges) * self.seq_len)
            return
        before = order_name(self.segments)
        self.segments = self.batches().segments_after_change(self.step, self.ramp, self.seq_len, self.seed)
        if order_name(self.segments) != before:
            self.lost += self.seq_len - 1  # at the end of the epoch's rest, an incomplete sequence

    def take(self, steps):
        batches = self.batches()
        for step in range(self.step, self.step + steps):
            self.counts.update(batches.batch(step)[1].reshape(-1).tolist())
        self.step += steps
        self.saved[self.step] = self.state()

    def skip(self, start, count):
        batches = self.batches()
        position = batches.position(self.step)
        first, last = (batches.nominal_position(self.step + n) for n in (start, start + count))
        if last > max(first, position):
            self.skips.setdefault(order_name(self.segments), []).append((max(first, position), last))
            self.out += (last - max(first, position)) * self.seq_len


ACTIONS = st.one_of(
    st.tuples(st.just("take"), st.integers(1, 6)),
    st.tuples(st.just("sizes"), st.sampled_from([((0, 1),), ((0, 5),), ((0, 2), (9, 7)), ((0, 8), (4, 3))])),
    st.tuples(st.just("seq_len"), st.sampled_from([4, 8, 16])),
    st.tuples(st.just("seed"), st.integers(0, 3)),
    st.tuples(st.just("rewind"), st.integers(0, 10**6)),
    st.tuples(st.just("skip"), st.tuples(st.integers(0, 3), st.integers(1, 3))),
)


@settings(max_examples=150, deadline=None)
@example([("skip", (0, 3)), ("seq_len", 16), ("take", 1), ("take", 1), ("take", 3), ("take", 6)])
@given(st.lists(ACTIONS, max_size=14))
def test_each_sequence_comes_once_per_epoch_after_any_changes(text, actions):
    run = Run(text)
    for action, value in actions:
        if action == "take":
            run.take(value)
        elif action == "rewind":
            run.resume(sorted(run.saved)[value % len(run.saved)])
        elif action == "skip":
            run.resume(run.step) if run.step in run.saved else None
            run.skip(*value)
        else:
            setattr(run, {"sizes": "ramp"}.get(action, action), value)
            run.resume(max(run.saved))
    batches = run.batches()
    epoch = batches.epoch(run.step)
    counts = [run.counts[token] for token in range(LENGTH)]
    assert max(counts) <= epoch + 1  # nothing twice in an epoch
    assert sum(max(0, epoch - count) for count in counts) <= run.out + run.lost * (epoch > 0)  # and nothing left out

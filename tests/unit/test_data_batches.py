"""A batch is a function of seed and step, and every token is predicted once per epoch."""

import numpy as np
import pytest

from mindspore_palm.data.batches import Batches, validation_batches
from mindspore_palm.data.tokens import TokenWriter
from mindspore_palm.errors import UserError

SEQ_LEN, EOD = 8, 1


def write(folder, count):
    writer = TokenWriter(folder, 1000, EOD)
    writer.add(range(count), False)
    return writer.finish()


@pytest.fixture
def tokens(tmp_path):
    """50 sequences and 5 more tokens, all of them different."""
    return write(tmp_path / "t", 405)


def make(tokens, ramp=((0, 6),), seed=0, skipped=()):
    return Batches(tokens, SEQ_LEN, EOD, list(ramp), seed, skipped)


def test_inputs_are_targets_shifted_by_one(tokens):
    inputs, targets = make(tokens).batch(3)
    assert inputs.shape == targets.shape == (6, SEQ_LEN)
    assert inputs.dtype == targets.dtype == np.int32
    assert (inputs[:, 0] == EOD).all()
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    assert (targets[:, 0] % SEQ_LEN == 0).all() and (np.diff(targets) == 1).all()  # full sequences without overlap


def test_every_sequence_once_an_epoch_in_a_new_order(tokens):
    batches = make(tokens, [(0, 5)])
    epochs = [np.concatenate([batches.batch(s)[1] for s in range(e * 10, e * 10 + 10)])[:, 0] for e in range(4)]
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(0, 400, SEQ_LEN))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [batches.epoch(s) for s in (0, 9, 10, 25)] == [0, 0, 1, 2]


def test_a_batch_at_the_end_of_an_epoch_continues_in_the_next(tokens):
    batches = make(tokens, [(0, 48)])
    first, second = batches.batch(0)[1][:, 0], batches.batch(1)[1][:, 0]
    assert set(first) | set(second[:2]) == set(range(0, 400, SEQ_LEN))


def test_pure_in_seed_and_step(tokens):
    one, other = make(tokens, seed=3), make(tokens, seed=3)
    steps = [7, 0, 7, 100]
    expected = {step: other.batch(step)[1] for step in sorted(steps)}
    for step in steps:
        assert np.array_equal(one.batch(step)[1], expected[step])
    assert not np.array_equal(make(tokens, seed=4).batch(7)[1], expected[7])


@pytest.mark.parametrize("workers", [1, 2, 3, 6])
def test_workers_together_read_the_batch(tokens, workers):
    batches = make(tokens, [(0, 6), (3, 12)])
    for step in (0, 2, 3, 9):
        share = batches.batch_size(step) // workers
        parts = [make(tokens, [(0, 6), (3, 12)]).slice(step, w * share, share) for w in range(workers)]
        for full, shares in zip(batches.batch(step), zip(*parts, strict=True), strict=True):
            assert np.array_equal(full, np.concatenate(shares))


def test_rows_out_of_range(tokens):
    batches = make(tokens)
    assert batches.slice(0, 6, 0)[0].shape == (0, SEQ_LEN)
    for step, first, count in ((0, 5, 2), (0, -1, 2), (-1, 0, 1)):
        with pytest.raises(ValueError):
            batches.slice(step, first, count)


def test_the_ramp(tokens):
    batches = make(tokens, [(0, 2), (10, 4), (15, 8)])
    sizes = [batches.batch_size(step) for step in range(30)]
    assert sizes == [2] * 10 + [4] * 5 + [8] * 15
    assert [batches.sequences_before(step) for step in range(31)] == [sum(sizes[:step]) for step in range(31)]
    assert batches.batch(12)[0].shape == (4, SEQ_LEN)


def test_positions_are_exact_far_out(tokens):
    """Floating point is inexact beyond 2**53, and int64 overflows beyond 2**63."""
    batches = make(tokens, [(0, 7)])
    step = 50 * 10**20 + 3
    assert batches.sequences_before(step) == 7 * step
    rows = np.concatenate([batches.batch(step + i)[1][:, 0] for i in range(4)])
    assert len(set(rows)) == 28  # positions 21 to 48 of an epoch: no sequence twice
    later = np.concatenate([batches.batch(step + 4 + i)[1][:, 0] for i in range(4)])
    assert set(later[:1]) | set(rows) <= set(range(0, 400, SEQ_LEN)) and len(set(later[1:])) == 27


def test_skipped_ranges(tokens):
    """The order stays the same; exactly the sequences in the ranges are skipped."""
    everything = make(tokens, [(0, 5)])
    order = np.concatenate([everything.batch(step)[1][:, 0] for step in range(30)])
    kept = np.delete(order, np.r_[7:12, 48:53, 90:91])  # within an epoch of 50, across its end, a single one
    batches = make(tokens, [(0, 2), (4, 5)], skipped=[(7, 12), (48, 53), (90, 91)])
    sizes = [batches.batch_size(step) for step in range(25)]
    assert sizes == [2] * 4 + [5] * 21  # the ramp counts steps, not data
    ours = [batches.batch(step)[1][:, 0] for step in range(25)]
    assert np.array_equal(np.concatenate(ours), kept[: sum(sizes)])
    for step in (0, 3, 4, 9, 10):
        position = batches.position(step)
        assert order[position] == ours[step][0] and batches.epoch(step) == position // 50
        halves = [batches.slice(step, first, 1)[1][0, 0] for first in range(sizes[step])]
        assert np.array_equal(halves, ours[step])


def test_too_little_text_for_a_batch(tokens):
    make(tokens, [(0, 50)])
    with pytest.raises(UserError, match=r"50 sequences of data.seq_len = 8 .*batch_size = 51; lower train.batch_size"):
        make(tokens, [(0, 4), (9, 51)])


def test_validation_is_in_order_and_its_last_batch_is_padded(tokens):
    batches = list(validation_batches(tokens, SEQ_LEN, EOD, 16))
    assert [b[0].shape for b in batches] == [(16, SEQ_LEN)] * 4
    targets = np.concatenate([t for _, t in batches])
    assert np.array_equal(targets[:50].reshape(-1), np.arange(400))
    assert (targets[50:] == -1).all()
    assert all((inputs >= 0).all() and inputs.dtype == np.int32 for inputs, _ in batches)
    assert all((inputs[:, 0] == EOD).all() for inputs, _ in batches)


def test_a_limit_samples_the_full_split(tokens):
    batches = list(validation_batches(tokens, SEQ_LEN, EOD, 3, 5))
    targets = np.concatenate([t for _, t in batches])
    assert (targets[:, 0] // SEQ_LEN)[:5].tolist() == [0, 10, 20, 30, 40]
    assert targets.shape == (6, SEQ_LEN) and (targets[5] == -1).all()


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (16, 16), (17, 17), (50, 50), (999, 50), (None, 50)])
def test_validation_stops_at_its_limit(tokens, limit, count):
    targets = np.concatenate([t for _, t in validation_batches(tokens, SEQ_LEN, EOD, 16, limit)])
    assert (targets[:, 0] >= 0).sum() == count


def test_too_little_text_for_validation(tmp_path):
    short = write(tmp_path / "s", 7)
    with pytest.raises(UserError, match=r"7 tokens, 0 sequences of data.seq_len = 8.*data.validation_fraction"):
        validation_batches(short, SEQ_LEN, EOD, 4)

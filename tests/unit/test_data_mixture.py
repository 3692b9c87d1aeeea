"""Mixtures: shares by arithmetic, batches as a function of seed and step, identity by content and weights."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from mindspore_palm.config import DataConfig
from mindspore_palm.data import Batches, Tokenizer, prepare_text
from mindspore_palm.data.mixture import Mixture, reached, tokens_by_weight
from mindspore_palm.data.tokens import TokenWriter
from mindspore_palm.errors import UserError
from mindspore_palm.settings import load_settings
from mindspore_palm.train.state import fingerprint

EOD = 1


def text(folder, tokens):
    writer = TokenWriter(folder, 2**16, EOD)
    writer.add([int(token) for token in tokens[:-1]], ends=False)
    writer.add([], ends=True)
    return writer.finish()


@pytest.fixture
def mixture(tmp_path):
    """100 tokens 1000, 1001, ... and 30 tokens 2000, ..., three to one."""
    sources = [text(tmp_path / "a", 1000 + np.arange(100)), text(tmp_path / "b", 2000 + np.arange(30))]
    return Mixture(sources, tokens_by_weight([100, 30], [3.0, 1.0], repeat=True))


def test_shares_of_an_epoch():
    """By hand: 100 tokens at 3/4 make an epoch of 133.3, of which 1/4 is 33; 30 held-out tokens at 1/4 allow 120."""
    assert tokens_by_weight([100, 30], [3.0, 1.0], repeat=True) == [100, 33]
    assert tokens_by_weight([100, 30], [3.0, 1.0], repeat=False) == [90, 30]
    assert tokens_by_weight([100, 30], [0.75, 0.25], repeat=True) == [100, 33]
    assert tokens_by_weight([10, 1000], [0.5, 0.5], repeat=True) == [1000, 1000]
    assert tokens_by_weight([7], [0.1], repeat=True) == [7]
    lengths, weights = [10**13, 3, 977], [0.1, 0.7, 0.2]
    counts = tokens_by_weight(lengths, weights, repeat=True)
    assert all(count >= length for count, length in zip(counts, lengths, strict=True))
    for count, weight in zip(counts, weights, strict=True):
        assert abs(Fraction(count) - Fraction(weight) / sum(map(Fraction, weights)) * sum(counts)) < 3


def test_the_epoch_is_the_sources_repeated(mixture):
    a, b = (source.read(0, len(source)) for source in mixture.sources)
    expected = np.concatenate([a, b, b[:3]])
    assert len(mixture) == 133 and mixture.sequences(8) == 16
    for start in range(0, 133, 7):
        for stop in range(start, 134, 11):
            np.testing.assert_array_equal(mixture.read(start, stop), expected[start:stop])
    inputs, targets = mixture.examples([3, 0], 8, EOD)
    np.testing.assert_array_equal(targets, [expected[24:32], expected[:8]])
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    assert (inputs[:, 0] == EOD).all()


def test_a_batch_is_a_function_of_seed_and_step(mixture):
    """Whoever asks first, from wherever: also one row of a worker. An epoch takes every sequence once."""
    batches = Batches(mixture, 8, EOD, [(0, 4)], seed=5)
    again = Batches(mixture, 8, EOD, [(0, 4)], seed=5)
    later = [again.batch(step) for step in (9, 2, 30)]
    for (inputs, targets), step in zip(later, (9, 2, 30), strict=True):
        np.testing.assert_array_equal(batches.batch(step)[1], targets)
        np.testing.assert_array_equal(batches.slice(step, 2, 1)[0], inputs[2:3])
    epoch = np.concatenate([batches.batch(step)[1] for step in range(4)])
    expected = mixture.read(0, 128)
    np.testing.assert_array_equal(np.sort(epoch.reshape(-1)), np.sort(expected))
    assert not np.array_equal(Batches(mixture, 8, EOD, [(0, 4)], seed=6).batch(0)[1], batches.batch(0)[1])


def test_what_was_reached_is_counted(mixture):
    batches = Batches(mixture, 8, EOD, [(0, 4)], seed=5)
    for steps in (1, 3, 4, 11):
        taken = np.concatenate([batches.batch(step)[1] for step in range(steps)]).reshape(-1)
        is_eod, from_b = taken == EOD, taken >= 2000
        _, tokens = reached(batches.taken(steps, 10**6), 8)
        assert tokens.sum() == taken.size
        assert from_b.sum() <= tokens[1] <= from_b.sum() + is_eod.sum()
    _, tokens = reached(batches.taken(8, 10**6), 8)
    assert tokens.tolist() == [200, 56]  # two epochs of 128 of the 133 tokens; the last five, of b, fill no sequence
    assert sum(len(indices) for _, indices in batches.taken(8, 10)) == 10


def test_a_change_midway_repeats_nothing_and_skips_nothing(mixture):
    batches = Batches(mixture, 8, EOD, [(0, 4)], seed=5)
    before = batches.batch(0)[1]
    segments = batches.segments_after_change(1, [(0, 4)], 5, 5)
    after = Batches(mixture, 5, EOD, [(0, 4)], seed=5, segments=segments)
    count = after.order.first_count
    assert count == (133 - 32) // 5
    rest = np.concatenate([after.slice(1 + step, row, 1)[1] for step in range(5) for row in range(4)])[:count]
    both = np.concatenate([before.reshape(-1), rest.reshape(-1)])
    left = list(np.sort(mixture.read(0, 133)))
    for token in both:
        left.remove(token)
    assert len(left) == 1


def write(folder, count_a=900, count_b=200):
    folder.mkdir()
    (folder / "a.txt").write_text("".join(f"alpha {i} of {i * i} things\n" for i in range(count_a)))
    (folder / "b.txt").write_text("".join(f"beta {i} and {i * 7} others\n" for i in range(count_b)))


def prepared(folder, weights=(3.0, 1.0), **more):
    names = [str(folder / name) for name in ("a.txt", "b.txt")]
    sources = [{"path": name, "weight": weight} for name, weight in zip(names, weights, strict=True)]
    values = {"mixture": sources, "prepared": str(folder / "prepared"), "seq_len": 16, **more}
    return prepare_text(DataConfig.model_validate(values), 300, progress=False)


def test_sources_share_a_tokenizer_and_are_known_by_content_and_weights(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name)
    first = prepared(tmp_path / "one")
    assert len({part.tokenizer.serialized for part in first.sources}) == 1
    for number, name in enumerate(("a.txt", "b.txt")):
        part, whole = first.sources[number], (tmp_path / "one" / name).read_text()
        read = part.tokenizer.decode(part.train.read(0, len(part.train))) + part.tokenizer.decode(
            part.validation.read(0, len(part.validation))
        )
        assert sorted(read.splitlines()) == sorted(whole.splitlines())
    assert fingerprint(prepared(tmp_path / "two")) == fingerprint(first)
    assert fingerprint(prepared(tmp_path / "two", (6.0, 2.0))) == fingerprint(first)
    assert prepared(tmp_path / "two", (3.0, 2.0)).meta["train"]["sha256"] != first.meta["train"]["sha256"]
    lines = first.summary().splitlines()
    assert lines[0].startswith("mixture     75.0% ") and "a.txt: 1 file" in lines[0] and "times" not in lines[0]
    passes = first.train.counts[1] / len(first.sources[1].train)
    assert passes > 1 and f"{passes:.1f} times in an epoch" in lines[1]
    counts = first.validation.counts
    assert counts[0] == pytest.approx(3 * counts[1], abs=3)
    held_out = [part.meta["validation"] for part in first.sources]
    assert f"{sum(counts):,} of the {sum(part['tokens'] for part in held_out):,} tokens that are held out" in "".join(
        lines
    )
    sizes = [count * part["bytes"] / part["tokens"] for count, part in zip(counts, held_out, strict=True)]
    gzip9 = [part.meta["gzip9_bits_per_byte"] for part in first.sources]
    assert first.meta["gzip9_bits_per_byte"] == pytest.approx(np.average(gzip9, weights=sizes)) and gzip9[0] != gzip9[1]
    assert all(count <= len(part.validation) for count, part in zip(counts, first.sources, strict=True))


def test_a_given_tokenizer_is_used(tmp_path):
    write(tmp_path / "one")
    file = tmp_path / "given.model"
    Tokenizer.train((tmp_path / "one" / "a.txt").read_text().splitlines(), 300, file)
    assert prepared(tmp_path / "one", tokenizer=str(file)).tokenizer.serialized == file.read_bytes()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[{path: a.txt}]", "must be a list of sources with a path and a weight above 0"),
        ("[{path: a.txt, weight: 0}]", "must be a list of sources with a path and a weight above 0"),
        ("[a.txt, b.txt]", "must be a list of sources with a path and a weight above 0"),
        ("a.txt", "must be a list of sources with a path and a weight above 0"),
        ("[{path: a.txt, weight: 1, name: x}]", "must be a list of sources with a path and a weight above 0"),
        ("[{path: a.txt, weight: 1}, {path: a.txt, weight: 2}]", "must name each path once: add the weights of a.txt"),
    ],
)
def test_what_is_no_mixture_is_refused(value, message):
    with pytest.raises(UserError, match=r"data\.mixture = ") as caught:
        load_settings(None, [f"data.mixture={value}"])
    assert message in str(caught.value)


def test_a_source_that_is_not_there_is_named(tmp_path):
    write(tmp_path / "one")
    (tmp_path / "one" / "b.txt").unlink()
    with pytest.raises(UserError, match=r"^data\.mixture = .*b\.txt: there is no such file"):
        prepared(tmp_path / "one")
    write(tmp_path / "two")
    with pytest.raises(UserError, match=r"with weights 1e-30, 1, an epoch .* raise the smallest weight"):
        prepared(tmp_path / "two", (1e-30, 1.0))

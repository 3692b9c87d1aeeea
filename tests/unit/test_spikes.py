"""Loss spikes: detected by robust statistics, handled as by PaLM's authors."""

from __future__ import annotations

import math
import random

import pytest

from mindspore_palm.checkpoint.progress import Progress, Rewind, read_rewinds, skipped, write_rewinds
from mindspore_palm.config import TrainConfig
from mindspore_palm.errors import UserError
from mindspore_palm.settings import load_settings
from mindspore_palm.train.spikes import Spike, batches_to_skip, count_tries, detect_spike, rewind_target

PALM = TrainConfig(spikes="palm")


def see(progress, losses, norms=None, settings=PALM):
    """Takes steps; returns the spikes that were detected."""
    found = []
    for number, loss in enumerate(losses):
        progress.step += 1
        spike = detect_spike(progress, loss, norms[number] if norms else 1.0, settings)
        if spike:
            found.append(spike)
    return found


def falling(steps, seed=0, noise=0.1):
    draw = random.Random(seed)
    return [3 + 4 / math.sqrt(1 + step / 20) + draw.gauss(0, noise) for step in range(steps)]


@pytest.mark.parametrize("seed", range(5))
def test_no_spike_in_ordinary_training(seed):
    draw = random.Random(seed)
    norms = [math.exp(draw.gauss(0, 0.5)) for _ in range(3000)]
    assert see(Progress(), falling(3000, seed), norms) == []


def test_some_outliers_in_a_row_are_a_spike():
    progress = Progress()
    assert see(progress, falling(400)) == []
    usual = sorted(progress.losses)[len(progress.losses) // 2]
    (spike,) = see(progress, [6.0, 6.5, 7.0])
    assert (spike.first, spike.last, spike.loss) == (401, 403, 7.0)
    assert spike.median == pytest.approx(usual, abs=0.05)
    assert "from 3." in str(spike) and "to 7.000 in steps 401 to 403" in str(spike)


def test_one_odd_batch_is_no_spike():
    progress = Progress()
    assert see(progress, [*falling(400), 7.0, 7.0, 3.9, 7.0, 3.9]) == []
    assert progress.outliers == 0 and max(progress.losses) < 6  # and they are not in the statistics


def test_a_gradient_norm_that_jumps_makes_a_smaller_rise_an_outlier():
    for norm, spikes in ((1.0, 0), (50.0, 1)):
        progress, draw = Progress(), random.Random(1)
        see(progress, falling(400), [math.exp(draw.gauss(0, 0.2)) for _ in range(400)])
        usual = sorted(progress.losses)[64]
        assert len(see(progress, [usual + 0.45] * 3, [norm] * 3)) == spikes  # four to five standard deviations


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_steps_that_are_not_finite_are_outliers(loss):
    progress = Progress()
    assert see(progress, [loss] * 30, [math.nan] * 30) == []  # before there are statistics
    see(progress, falling(100))
    assert len(see(progress, [loss] * 3, [math.nan] * 3)) == 1
    assert all(map(math.isfinite, progress.losses + progress.norms))


def test_off_is_off():
    progress = Progress()
    assert see(progress, [*falling(400), 90, 90, 90, 90], settings=TrainConfig()) == []
    assert progress.losses == []


def test_the_statistics_are_in_the_state():
    """Interrupted anywhere and resumed from JSON, it detects the same spike."""
    import json

    losses = [*falling(300), 6.0, 6.1, 6.2]
    for split in (1, 15, 200, 301, 302):
        progress = Progress()
        see(progress, losses[:split])
        progress = Progress.from_json(json.loads(json.dumps(progress.to_json())))
        assert [spike.last for spike in see(progress, losses[split:])] == [303]


@pytest.mark.parametrize(
    ("first", "to"),
    [(350, 200), (401, 300), (400, 300), (299, 100), (250, 100), (199, 100), (150, 100), (100, 0), (9, 0)],
)
def test_the_checkpoint_about_100_steps_before(first, to):
    """The newest that is old enough; if there is none, the oldest before the spike; else the initial weights."""
    assert rewind_target([500, 400, 300, 200, 100], Spike(first, first + 2, 9.0, 3.0), 100) == to


def test_from_200_to_500_batches():
    assert [batches_to_skip(PALM, number, 100) for number in range(3)] == [200, 350, 500]
    assert [batches_to_skip(PALM, number, 190) for number in range(3)] == [290, 350, 500]  # 90 would end in the spike
    once = TrainConfig(spikes="palm", spike_tries=1)
    assert batches_to_skip(once, 0, 100) == 200


def test_tries_for_the_same_spike():
    def decided(at, asked=""):
        return Rewind("", at, at - 150, (0, 1), asked)

    spike = Spike(360, 362, 9.0, 3.0)
    assert count_tries([], spike, PALM) == 0
    assert count_tries([decided(352), decided(380)], spike, PALM) == 2
    assert count_tries([decided(352, "by hand"), decided(355)], spike, PALM) == 1
    assert count_tries([decided(252)], spike, PALM) == 0  # long ago: another spike


def test_skipped_ranges_are_joined():
    def skip(*ranges):
        return skipped([Rewind("", 1, 0, part) for part in ranges])

    assert skip() == skip((4, 4)) == []
    assert skip((8, 12), (2, 4)) == [(2, 4), (8, 12)]
    assert skip((2, 5), (4, 9), (9, 11), (3, 4)) == [(2, 11)]


def test_decisions_outlive_the_process(tmp_path):
    assert read_rewinds(tmp_path) == []
    rewinds = [Rewind("a spike", 352, 200, (1600, 3200)), Rewind("by hand", 400, 300, (0, 0), "--rewind-to 300")]
    write_rewinds(tmp_path, rewinds)
    assert read_rewinds(tmp_path) == rewinds
    for content in ("[{}]", "{", "[1]"):
        (tmp_path / "rewinds.json").write_text(content)
        with pytest.raises(UserError, match=r"rewinds\.json was altered"):
            read_rewinds(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.checkpoint_every=0"], "checkpoint_every = 0"),
        (["train.keep_last=1"], "set keep_last to 3"),
        (["train.spike_look_back=400"], "set keep_last to 6"),
        (["train.spike_skip=600"], "spike_skip_most = 500"),
    ],
)
def test_settings_that_cannot_recover_from_a_spike(overrides, said):
    assert load_settings(None, ["train.spikes=off", *overrides])[0].train.spikes == "off"
    with pytest.raises(UserError, match=said):
        load_settings(None, ["train.spikes=palm", *overrides])

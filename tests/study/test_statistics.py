"""Intervals and fits against values worked out by hand, tables, and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mindspore_palm.study.statistics import (
    Interval,
    fit,
    paired,
    percentiles,
    resampled,
    resampled_slopes,
    t_below,
    t_quantile,
)

T_TABLE = {  # Abramowitz and Stegun, table 26.10, of 0.975
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    7: 2.365,
    10: 2.228,
    30: 2.042,
}


@pytest.mark.parametrize("freedom", T_TABLE)
def test_quantiles_are_those_of_the_table(freedom):
    assert t_quantile(0.975, freedom) == pytest.approx(T_TABLE[freedom], abs=5e-4)


def test_quantiles_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="MindSpore brings scipy, which is the reference here")
    for freedom in (*range(1, 20), 99, 100):
        for probability in (0.6, 0.9, 0.95, 0.995):
            expected = stats.t.ppf(probability, freedom)
            assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9)
            assert t_below(expected, freedom) == pytest.approx(probability, rel=1e-12)


def test_an_interval_worked_out_by_hand():
    """Differences 1, 2, 3, 4, 5: mean 3, s = sqrt(2.5), s/sqrt(5) = 0.70711, t(4) = 2.77645, half 1.96324."""
    interval = paired([11.0, 22.0, 33.0, 44.0, 55.0], [10.0, 20.0, 30.0, 40.0, 50.0], 0.95)
    assert interval.value == 3.0 and interval.count == 5
    assert interval.low == pytest.approx(3 - 1.96324, abs=1e-5)
    assert interval.high == pytest.approx(3 + 1.96324, abs=1e-5)


def test_what_all_networks_share_by_seed_does_not_widen_an_interval():
    """Losses that differ by seeds far more than networks do: the paired difference is the same in all of them."""
    base = np.array([1.0, 5.0, 9.0])
    interval = paired(base + 0.25, base, 0.95)
    assert (interval.low, interval.high) == (0.25, 0.25) and interval.sign == 1


def test_one_pair_has_no_interval():
    with pytest.raises(ValueError, match="two pairs, and there are 1"):
        paired([1.0], [2.0], 0.95)


@pytest.mark.parametrize(("low", "high", "sign"), [(0.1, 0.2, 1), (-0.2, -0.1, -1), (-0.1, 0.2, 0), (0.0, 0.1, 0)])
def test_a_difference_is_seen_if_its_interval_is_on_one_side_of_zero(low, high, sign):
    assert Interval((low + high) / 2, low, high, 5).sign == sign


def test_a_line_through_points_on_a_line():
    """loss = 5 - 0.2 ln F. A difference of 0.02 nats is e^(0.02/0.2) - 1 = 10.517 % of compute."""
    flops = [1e9, 1e10, 1e11, 1e12]
    losses = np.array([[5 - 0.2 * math.log(f) - 0.01, 5 - 0.2 * math.log(f) + 0.01] for f in flops])
    line = fit(flops, losses)
    assert (line.level, line.slope) == (pytest.approx(5.0, abs=1e-9), pytest.approx(0.2, abs=1e-10))
    assert line.residual == pytest.approx(0, abs=1e-9)
    assert line.more_compute(0.02) == pytest.approx(10.517, abs=1e-3)
    assert line.more_compute(-0.02) == pytest.approx(100 * (math.exp(-0.1) - 1))


def test_resampled_lines_are_those_of_numpy():
    flops, losses = [1e9, 1e10, 1e11, 1e12], np.random.default_rng(0).normal(3, 1, (4, 5))
    draws = resampled(5)[:20]
    expected = [-np.polyfit(np.log(flops), losses[:, draw].mean(axis=1), 1)[0] for draw in draws]
    np.testing.assert_allclose(resampled_slopes(flops, losses, draws), expected, rtol=1e-9)


def test_a_line_that_does_not_fall_says_nothing_of_compute():
    assert math.isnan(fit([1.0, 10.0], np.array([[1.0], [2.0]])).more_compute(0.1))


def test_the_bootstrap_covers_the_mean_of_what_it_resamples():
    values = np.array([0.0, 1.0, 2.0, 3.0])
    draws = [float(values[draw].mean()) for draw in resampled(4)]
    interval = percentiles(draws, 1.5, 0.95, 4)
    # all means of four draws with replacement: 4^4 cases, the 2.5th percentile is 0.5 and the 97.5th 2.5
    assert (interval.low, interval.high) == (pytest.approx(0.5, abs=0.26), pytest.approx(2.5, abs=0.26))
    assert resampled(4).tolist() == resampled(4).tolist()

"""Intervals of paired differences, by Student's t distribution, and of what a fit says, by the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000  # resamples of a bootstrap
PRECISION = 1e-12


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float
    count: int
    """Pairs that it was estimated from."""

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies on one side of zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def paired(ours: Sequence[float], base: Sequence[float], confidence: float) -> Interval:
    """Mean of the differences ``ours - base`` of pairs, with Student's interval: mean +- t * s / sqrt(n).

    Args:
        ours: a value per pair; at least two.
        base: what it is compared with, pair by pair.
        confidence: probability with which the interval covers the expected difference, such as 0.95.
    """
    differences = np.asarray(ours, np.float64) - np.asarray(base, np.float64)
    count = len(differences)
    if count < 2:
        raise ValueError(f"an interval needs two pairs, and there are {count}")
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    half = t_quantile(0.5 + confidence / 2, count - 1) * spread / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def t_quantile(probability: float, freedom: int) -> float:
    """The value that Student's t, with so many degrees of freedom, stays below with this probability, 0.5 or more."""
    low, high = 0.0, 1.0
    while t_below(high, freedom) < probability:
        high *= 2
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_below(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def t_below(t: float, freedom: int) -> float:
    """Probability that Student's t is below t >= 0 (Abramowitz and Stegun, 26.7.3 and 26.7.4, in closed form)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = (cosine, 0.0) if freedom % 2 else (1.0, 0.0)
    for i in range(1 + freedom % 2, freedom, 2):
        total += term
        term *= cosine * cosine * i / (i + 1)
    inside = 2 / math.pi * (angle + sine * total) if freedom % 2 else sine * total
    return 0.5 + inside / 2


@dataclass(frozen=True)
class Fit:
    """``loss = level - slope * ln(FLOPs)``, by least squares over the mean losses of sizes."""

    level: float
    slope: float
    """Nats per factor e of compute."""
    residual: float
    """Largest distance of a mean loss from the line."""

    def more_compute(self, difference: float) -> float:
        """Percent of compute that makes up for a difference in loss, as ``more_compute``."""
        return more_compute(self.slope, difference)


def more_compute(slope: float, difference: float) -> float:
    """``100 (e^(difference / slope) - 1)`` percent; not a number if loss does not fall with compute."""
    return 100.0 * math.expm1(min(difference / slope, 50.0)) if slope > 0 else math.nan


def fit(flops: Sequence[float], losses: np.ndarray) -> Fit:
    """The line through the mean losses of sizes.

    Args:
        flops: of a run of each size.
        losses: [sizes, seeds].
    """
    x, y = np.log(np.asarray(flops, np.float64)), np.asarray(losses, np.float64).mean(axis=1)
    slope = float(_slopes(x, y))
    level = float(y.mean() + slope * x.mean())
    return Fit(level, slope, float(np.abs(level - slope * x - y).max()))


def resampled_slopes(flops: Sequence[float], losses: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Slopes of the lines through resampled losses: float64 [DRAWS].

    Args:
        flops: of a run of each size.
        losses: [sizes, seeds].
        draws: indices of seeds, as ``resampled`` returns them.
    """
    return _slopes(np.log(np.asarray(flops, np.float64)), np.asarray(losses, np.float64)[:, draws].mean(axis=2))


def _slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``-sum((x - mean x) y) / sum((x - mean x)^2)``: x [sizes], and y [sizes] or [sizes, DRAWS]."""
    centred = x - x.mean()
    return -(centred @ y) / (centred @ centred)


def resampled(count: int, seed: int = 0) -> np.ndarray:
    """Indices of seeds, drawn with replacement: int [DRAWS, count]. A seed is drawn for all sizes and variants."""
    return np.random.default_rng(seed).integers(0, count, (DRAWS, count))


def percentiles(values: Sequence[float], value: float, confidence: float, count: int) -> Interval:
    """The percentile interval of bootstrapped values around an estimate."""
    finite = np.asarray([v for v in values if math.isfinite(v)])
    if not len(finite):
        return Interval(value, math.nan, math.nan, count)
    low, high = np.percentile(finite, [50 * (1 - confidence), 50 * (1 + confidence)])
    return Interval(value, float(low), float(high), count)

"""Measurements with 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

NORMAL = 1.959963984540054  # standard errors to either side of the mean that hold 95 % of a normal distribution


@dataclass(frozen=True)
class Estimate:
    """A measurement and its 95 % confidence interval; no bounds if there is only one unit."""

    value: float
    low: float | None
    high: float | None

    def map(self, function: Callable[[float], float]) -> Estimate:
        """The estimate of an increasing function of the measurement."""
        bounds = (None if bound is None else function(bound) for bound in (self.low, self.high))
        return Estimate(function(self.value), *bounds)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Ratio of two sums over independent units, such as nats and tokens of documents.

    The standard error is that of the ratio estimator (Cochran, "Sampling Techniques", 2.11), which takes each unit's
    deviation from its share, because units differ in size. Nothing is drawn at random.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    total = math.fsum(below)
    value, units = math.fsum(above) / total, len(above)
    if units < 2:
        return Estimate(value, None, None)
    squares = math.fsum((above - value * below) ** 2)
    error = NORMAL * math.sqrt(squares * units / (units - 1)) / total
    return Estimate(value, value - error, value + error)


def proportion(hits: Sequence[bool]) -> Estimate:
    """Proportion of hits among independent units, with Wilson's interval, which also holds if all or none are hits."""
    units, value = len(hits), sum(hits) / len(hits)
    spread = NORMAL**2 / units
    middle = (value + spread / 2) / (1 + spread)
    half = NORMAL / (1 + spread) * math.sqrt(value * (1 - value) / units + spread / (4 * units))
    return Estimate(value, max(0.0, middle - half), min(1.0, middle + half))

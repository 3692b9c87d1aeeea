"""A figure with its 95 % confidence interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

NORMAL = 1.959963984540054  # standard errors that hold 95 % of a normal distribution on either side together


@dataclass(frozen=True)
class Estimate:
    """A figure, and between what it lies with 95 % confidence; no bounds where there is one unit only."""

    value: float
    low: float | None
    high: float | None

    def map(self, function: Callable[[float], float]) -> Estimate:
        """The same through a rising function."""
        bounds = (None if bound is None else function(bound) for bound in (self.low, self.high))
        return Estimate(function(self.value), *bounds)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Sum over sum of independent units, such as the nats and the tokens of documents.

    The standard error is that of the ratio estimator (Cochran, "Sampling Techniques", 2.11): units differ in size, and
    what counts is how far each is from its share. Nothing is drawn at random.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    total = math.fsum(below)
    value, units = math.fsum(above) / total, len(above)
    if units < 2:
        return Estimate(value, None, None)
    squares = math.fsum((above - value * below) ** 2)
    error = NORMAL * math.sqrt(squares * units / (units - 1)) / total
    return Estimate(value, value - error, value + error)


def share(hits: Sequence[bool]) -> Estimate:
    """How many of independent units are hits. Wilson's interval, which also holds where all or none are."""
    units, value = len(hits), sum(hits) / len(hits)
    spread = NORMAL**2 / units
    middle = (value + spread / 2) / (1 + spread)
    half = NORMAL / (1 + spread) * math.sqrt(value * (1 - value) / units + spread / (4 * units))
    return Estimate(value, max(0.0, middle - half), min(1.0, middle + half))

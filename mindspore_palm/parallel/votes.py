"""Decisions that all workers take together: stopping, saving, rewinding, and waiting for each other."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from mindspore_palm.parallel.context import this_rank
from mindspore_palm.parallel.sums import SumOverDevices

MAX_NUMBER = 2**24  # integers up to here are exact in float32


class Votes:
    """``votes(vote, ...)`` counts, for each vote, the workers of the current layout that vote for it.

    All workers must call it equally often, with equally many votes. No call returns before all have called.
    """

    def __init__(self) -> None:
        self._sum = SumOverDevices()

    def __call__(self, *votes: bool) -> tuple[int, ...]:
        return self._add(votes or (False,))

    def broadcast(self, number: int) -> int:
        """Rank 0's number, on all workers; at most 2^24."""
        if not 0 <= number <= MAX_NUMBER:
            raise ValueError(f"{number} is not between 0 and {MAX_NUMBER}")
        return self._add((number if this_rank() == 0 else 0,))[0]

    def _add(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        if not self._sum.several:
            return tuple(int(number) for number in numbers)
        total = self._sum(Tensor(np.array(numbers, np.float32))).asnumpy()
        return tuple(int(number) for number in total)

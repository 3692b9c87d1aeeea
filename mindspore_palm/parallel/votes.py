"""What all workers must do together or not at all: stopping, saving, going back, and waiting for each other."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from mindspore_palm.parallel.context import this_rank
from mindspore_palm.parallel.sums import SumOverDevices

LARGEST = 2**24  # whole numbers up to here are exact in float32


class Votes:
    """``votes(wish, ...)`` says for each wish how many workers of the current layout have it.

    All of them must call it equally often, with equally many wishes. None returns before all have called.
    """

    def __init__(self) -> None:
        self._sum = SumOverDevices()

    def __call__(self, *wishes: bool) -> tuple[int, ...]:
        return self._add(wishes or (False,))

    def broadcast(self, number: int) -> int:
        """The number that rank 0 gives, at most 2^24, on all workers."""
        if not 0 <= number <= LARGEST:
            raise ValueError(f"{number} is not between 0 and {LARGEST}")
        return self._add((number if this_rank() == 0 else 0,))[0]

    def _add(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        if not self._sum.several:
            return tuple(int(number) for number in numbers)
        total = self._sum(Tensor(np.array(numbers, np.float32))).asnumpy()
        return tuple(int(number) for number in total)

"""What all workers must do together or not at all: stopping, and waiting for each other."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from mindspore_palm.parallel.sums import SumOverDevices


class Agreement:
    """``agreement(wish)`` is true on all workers of the current layout if it was called with true on any.

    All of them must call it equally often. None returns before all have called.
    """

    def __init__(self) -> None:
        self._sum = SumOverDevices()

    def __call__(self, wish: bool = False) -> bool:
        if not self._sum.several:
            return wish
        return bool(self._sum(Tensor(np.float32(wish))).asnumpy() > 0)

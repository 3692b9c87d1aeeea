"""The machine's peak, by which MFU is measured."""

from __future__ import annotations

import time

import numpy as np
from mindspore import Tensor, ops

SIZE = 2048
REPEATS = 8


def measure_peak() -> float:
    """FLOP/s of the best of eight float32 products of two 2048 x 2048 matrices, after one that warms up."""
    a = Tensor(np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32))
    matmul = ops.MatMul()
    best = float("inf")
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        matmul(a, a).asnumpy()
        best = min(best, time.perf_counter() - start)
    return 2 * SIZE**3 / best

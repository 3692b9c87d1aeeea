"""Peak FLOP/s of the machine, the denominator of MFU."""

from __future__ import annotations

import time

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindspore_palm.model.precision import MS_DTYPES

SIZE = 2048
REPEATS = 8
MATMULS_PER_READING = {"CPU": 1}
"""Matmuls between two readings of the clock; 256 on other devices, where fetching the last result must not count."""


def measure_peak(device: str = "CPU", dtype: str = "float32") -> float:
    """Measures the FLOP/s of a 2048 x 2048 matmul on a device, in the compute dtype of blocks.

    Returns the best of eight measurements, after one to warm up.

    Args:
        device: CPU, GPU or Ascend.
        dtype: the compute dtype of the layout.
    """
    values = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32) / SIZE**0.5
    a = Tensor(values).astype(MS_DTYPES[dtype])
    matmul, count = ops.MatMul(), MATMULS_PER_READING.get(device, 256)
    best = float("inf")
    for _ in range(REPEATS + 1):
        start, b = time.perf_counter(), a
        for _ in range(count):
            b = matmul(a, b)
        b.astype(ms.float32).asnumpy()
        best = min(best, time.perf_counter() - start)
    return 2 * count * SIZE**3 / best

"""Peak FLOP/s of the machine, the denominator of MFU."""

from __future__ import annotations

import time
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindspore_palm.model.precision import MS_DTYPES

REPEATS = 8


@dataclass(frozen=True)
class Sample:
    """Matmuls to time."""

    size: int
    """Rows and columns of the matrices."""
    matmuls: int
    """Matmuls between two readings of the clock."""


ON_CPU = Sample(2048, 1)
ON_ACCELERATOR = Sample(8192, 16)
"""Long enough for the launch of a kernel not to count."""


def measure_peak(device: str = "CPU", dtype: str = "float32") -> float:
    """Measures the FLOP/s of a square matmul on a device, in the compute dtype of blocks.

    Returns the best of eight measurements, after one to warm up.

    Args:
        device: CPU, GPU or Ascend.
        dtype: the compute dtype of the layout.
    """
    sample = ON_CPU if device == "CPU" else ON_ACCELERATOR
    shape = sample.size, sample.size
    values = np.random.default_rng(0).standard_normal(shape, np.float32) / np.float32(sample.size**0.5)
    a, column = (Tensor(x).astype(MS_DTYPES[dtype]) for x in (values, values[:, :1].copy()))
    matmul = ops.MatMul()
    best = float("inf")
    for _ in range(REPEATS + 1):
        start, b = time.perf_counter(), a
        for _ in range(sample.matmuls):
            b = matmul(a, b)
        matmul(b, column).astype(ms.float32).asnumpy()  # a column: fetching all of b would count
        best = min(best, time.perf_counter() - start)
    return 2 * sample.matmuls * sample.size**3 / best

"""The machine's peak, by which MFU is measured."""

from __future__ import annotations

import time

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindspore_palm.model.precision import MS_DTYPES

SIZE = 2048
REPEATS = 8
IN_A_ROW = {"CPU": 1}
"""Products between two looks at the clock; elsewhere 256, so that fetching the last one does not count."""


def measure_peak(kind: str = "CPU", dtype: str = "float32") -> float:
    """FLOP/s of a device's products of two 2048 x 2048 matrices, in the type that blocks compute in.

    The best of eight measurements, after one that warms up.

    Args:
        kind: of the device.
        dtype: the layout's compute type.
    """
    values = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32) / SIZE**0.5
    a = Tensor(values).astype(MS_DTYPES[dtype])
    matmul, count = ops.MatMul(), IN_A_ROW.get(kind, 256)
    best = float("inf")
    for _ in range(REPEATS + 1):
        start, product = time.perf_counter(), a
        for _ in range(count):
            product = matmul(a, product)
        product.astype(ms.float32).asnumpy()
        best = min(best, time.perf_counter() - start)
    return 2 * count * SIZE**3 / best

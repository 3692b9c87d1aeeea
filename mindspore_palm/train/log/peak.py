"""Peak FLOP/s of the machine, the denominator of MFU."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindspore_palm.errors import UserError
from mindspore_palm.files import write_json
from mindspore_palm.machine import processor_name, processors
from mindspore_palm.model.precision import MS_DTYPES
from mindspore_palm.native import cache_root

REPEATS = 8
KEPT = 24 * 3600.0
"""Seconds for which a CPU's peak is kept. Measuring it takes a quarter of the processor time of a short run's start."""


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


class Peak(NamedTuple):
    """The peak of one device."""

    flops: float
    """FLOP/s."""
    source: str
    """Where it comes from, in words."""


def peak_of(device: str, dtype: str, given: float = 0.0, alone: bool = True) -> Peak:
    """The peak of one device: the given one, or a measured one. A CPU's is measured once a day.

    Args:
        device: CPU, GPU or Ascend.
        dtype: the compute dtype of the layout.
        given: FLOP/s, from train.peak_tflops; 0 measures.
        alone: whether this is the only worker. Workers share a CPU's cores, so each measures its share, at each start.
    """
    if given:
        return Peak(given, "as set")
    file = _file(dtype) if device == "CPU" and alone else None
    if file and (kept := _read(file)):
        return kept
    flops = measure_peak(device, dtype)
    if file:
        with contextlib.suppress(OSError):  # a full or a read-only disk
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"flops": flops, "time": time.time()})
    return Peak(flops, "measured on a matmul just now")


def _file(dtype: str) -> Path | None:
    """Where this machine's peak is kept; None if there is no place to keep it."""
    machine = platform.node(), processor_name(), processors(), ms.__version__, dtype, ON_CPU
    with contextlib.suppress(UserError):
        return cache_root() / "peaks" / f"{hashlib.sha256(repr(machine).encode()).hexdigest()[:12]}.json"
    return None


def _read(file: Path) -> Peak | None:
    """A kept peak; None if there is none, or its file is too old or damaged."""
    try:
        content = json.loads(file.read_bytes())
        flops, age = float(content["flops"]), time.time() - float(content["time"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not (0 < flops < math.inf and 0 <= age < KEPT):
        return None
    ago = f"{age / 3600:.0f} h" if age >= 5400 else f"{age / 60:.0f} min"
    return Peak(flops, f"measured on a matmul {ago} ago; train.peak_tflops sets another")

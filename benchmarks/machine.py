"""Limits of this machine, measured in turns with what is compared with them; and its name and date, for results."""

from __future__ import annotations

import ctypes
import itertools
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from turns import Contender  # noqa: E402 - found by the path above

MATMUL, MATMULS = 2048, 4  # size, and how many before and after a turn
MATMUL_FLOPS = 2 * MATMUL**3
BLOCK = 4 * (2**24 - 64 * 128)  # bytes that a step of `reading` reads at least, with up to 128 cores
BLOCKS = 60  # read before and after a turn


def matmul_step():
    """A matmul of this package's backend."""
    import numpy as np

    from mindspore_palm.parallel.context import open_device

    open_device("CPU")
    from mindspore import Tensor, ops

    a, matmul = Tensor(np.random.default_rng(0).standard_normal((MATMUL, MATMUL), np.float32)), ops.MatMul()
    return lambda: matmul(a, a).asnumpy()


def reading(folder):
    """A step that reads the next block of memory."""
    library = Path(folder) / "bandwidth.so"
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, ROOT / "benchmarks" / "bandwidth.cc", "-o", library], check=True)
    read_block, number = ctypes.CDLL(str(library)).ReadBlock, itertools.count()
    read_block.restype = ctypes.c_int64

    def step():
        if read_block(ctypes.c_int64(next(number))) < BLOCK:
            raise RuntimeError("ReadBlock read less than a block")

    return step


class Rates(NamedTuple):
    """Bytes/s of the median block and of the fastest one; FLOP/s of the fastest matmul."""

    memory: float
    fastest_memory: float
    arithmetic: float


class Machine:
    """Two contenders, memory and arithmetic, that take turns with the others."""

    def __init__(self):
        with tempfile.TemporaryDirectory() as folder:
            self.memory = Contender(reading, folder).wait()
        self.matmul = Contender(matmul_step).wait()
        self.last = None

    def measure(self):
        """The rates since the last call, from measurements at both ends."""
        before, self.last = self.last, (self.memory.steps(BLOCKS), self.matmul.steps(MATMULS))
        blocks, matmuls = (one + other for one, other in zip(before or ([], []), self.last, strict=True))
        return Rates(BLOCK / statistics.median(blocks), BLOCK / min(blocks), MATMUL_FLOPS / min(matmuls))

    def close(self):
        self.memory.close()
        self.matmul.close()


def measured_on():
    """Host, date, commit and versions, for the JSON."""
    from importlib.metadata import PackageNotFoundError, version

    from mindspore_palm.machine import processor_name, processors
    from mindspore_palm.version import commit

    def version_of(package):
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "processor": processor_name(),
        "processors": processors(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit()[:7] or None,
        "versions": {name: version_of(name) for name in ("mindspore", "jax", "torch")},
    }

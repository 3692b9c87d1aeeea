"""The parts of a block for steps of one token, on one CPU: C++ functions that MindSpore calls.

They are built at their first use, in seconds, by g++. Without it, MindSpore's own ops do the same, slower; as they do
on several devices, and on GPU and Ascend.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.block import SwiGLU
from mindspore_palm.model.norm import RMSNorm
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.host.build import cache_root

MOST_ROWS = 8  # of an activation; with more, MindSpore's own product is faster
MOST_SEQUENCES = 63  # what is not a product is for steps of one token of so many sequences, not for prompts
SOURCE = Path(__file__).with_suffix(".cc")
# What lets sums be vectors. Not -ffast-math, which would also change the arithmetic of the whole process.
FLAGS = ["-O3", "-march=native", "-fopenmp-simd", "-pthread"]
FLAGS += ["-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno"]
# MindSpore unloads the library with the last network that calls it, while its threads are in it.
FLAGS += ["-Wl,-z,nodelete"]


@functools.cache
def library() -> Path | None:
    """The built functions; None without a compiler that can build them."""
    compiler = os.environ.get("CXX", "g++")
    parts = [platform.machine(), _processor(), compiler, *FLAGS]
    digest = hashlib.sha256("\n".join(parts).encode() + SOURCE.read_bytes()).hexdigest()
    built = cache_root() / f"decoding-{digest[:12]}.so"
    if built.exists():
        return built
    if shutil.which(compiler.split()[0]) is None:
        return None
    try:
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as work:
            command = [*compiler.split(), *FLAGS, "-shared", "-fPIC", str(SOURCE), "-o", str(Path(work) / built.name)]
            subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own source
            os.replace(Path(work) / built.name, built)  # nobody sees half of it
    except (OSError, subprocess.CalledProcessError):
        return None
    return built


def usable() -> bool:
    """Whether networks that are built for the current layout can have them."""
    return wanted() and library() is not None


def wanted() -> bool:
    """Whether they are for the current layout: one CPU, in float32."""
    here = current_layout()
    on_cpu = here.target == "CPU" and ms.get_context("device_target") == "CPU"
    return on_cpu and here.devices == 1 and here.compute_dtype == "float32"


class Product(nn.Cell):
    """``x w`` in place of an ops.MatMul, which many rows of x still get: [M, D] to [M, N]. It has no gradient.

    Args:
        matmul: the op in whose place it is.
        transpose_b: whether w is [N, D].
    """

    def __init__(self, matmul: ops.MatMul, transpose_b: bool = False) -> None:
        super().__init__()
        self.matmul = matmul
        self.few_rows = _custom("FewRowsTransposed", _rows_transposed) if transpose_b else _custom("FewRows", _rows)

    def construct(self, x: Tensor, w: Tensor) -> Tensor:
        return self.few_rows(x, w) if x.shape[0] <= MOST_ROWS else self.matmul(x, w)


class Norm(RMSNorm):
    """PaLM's own norm, as one function where rows are few."""

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__(config)
        self.function = _custom("Norm", _like_first)

    def construct(self, x: Tensor) -> Tensor:
        return self.function(x, self.scale) if x.shape[0] <= MOST_SEQUENCES else super().construct(x)


class Gate(SwiGLU):
    """SwiGLU, as one function where rows are few."""

    def __init__(self) -> None:
        super().__init__()
        self.function = _custom("SwiGLU", _like_first)

    def construct(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.function(gate, up) if gate.shape[0] <= MOST_SEQUENCES else super().construct(gate, up)


def turn() -> ops.Custom:
    """``Rope.turn``: x [B, Q, H, K], cos and sin [B, Q, 1, K/2] to [B, Q, H, K]."""
    return _custom("Turn", _like_first)


def one_query() -> ops.Custom:
    """Attention of one query a sequence: q [B, 1, H, K], keys, values and slots of the cache, to [B, 1, H, K]."""
    return _custom("OneQuery", _like_first)


def _custom(name: str, shape: object) -> ops.Custom:
    return ops.Custom(f"{library()}:{name}", shape, ms.float32, func_type="aot")


def _rows(x: list[int], w: list[int]) -> list[int]:
    return [x[0], w[1]]


def _rows_transposed(x: list[int], w: list[int]) -> list[int]:
    return [x[0], w[0]]


def _like_first(first: list[int], *others: list[int]) -> list[int]:
    return first


def _processor() -> str:
    """What the processor can do, as far as Linux tells: the functions are built for this one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))

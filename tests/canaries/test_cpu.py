"""Canaries: what MindSpore's CPU back end cannot do, or does slowly. Timings are slow tests: they need a quiet host."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from canaries.register import still
from many_processors import threads_after
from mindspore import Tensor, nn, ops
from mindspore.ops.auto_generate import SplitWithSize

from mindspore_palm.machine import resident_memory

pytestmark = pytest.mark.usefixtures("device")
HERE = Path(__file__).parent
REPEATS = 7


def normal(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


class Op(nn.Cell):
    """One op, with what it is told beside the tensors; ``pick``: of several results, this one."""

    def __init__(self, op, *more, pick=None):
        super().__init__()
        self.op, self.more, self.pick = op, more, pick

    def construct(self, *inputs):
        out = self.op(*inputs, *self.more)
        return out if self.pick is None else out[self.pick]


class GradientOf(nn.Cell):
    """The gradient of a Cell: its inputs, then the gradient of its result."""

    def __init__(self, net):
        super().__init__()
        self.net, self.gradient = net, ops.GradOperation(sens_param=True)

    def construct(self, *inputs):
        return self.gradient(self.net)(*inputs)


def refusal(net: nn.Cell, *inputs: Tensor) -> str:
    try:
        net(*inputs)
    except (TypeError, ValueError, RuntimeError) as error:
        return str(error)
    return ""


def milliseconds(net: nn.Cell, *inputs: Tensor | tuple[Tensor, ...]) -> float:
    """The shortest of some calls."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        results = net(*inputs)
        for result in results if isinstance(results, tuple) else (results,):
            result.asnumpy()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def test_ms_30_a_batched_matmul_does_not_broadcast():
    seen = refusal(Op(ops.BatchMatMul()), normal(2, 3, 4, 5), normal(2, 1, 5, 4))
    still("MS-30", "cannot be broadcast on CPU/GPU" in seen)


def test_ms_31_the_cpu_multiplies_no_bfloat16():
    x = normal(2, 2).astype(ms.bfloat16)
    seen = refusal(Op(ops.MatMul()), x, x)
    still("MS-31", "Select CPU operator[MatMul] fail" in seen)


COPY = r"""
#include <cstdint>
#include <fstream>
struct End { ~End() { std::ofstream("UNLOADED"); } } end;
extern "C" int Copy(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  for (int64_t i = 0; i < shapes[0][0]; ++i) static_cast<float *>(data[1])[i] = static_cast<float *>(data[0])[i];
  return 0;
}
"""


class Copy(nn.Cell):
    def __init__(self, library):
        super().__init__()
        self.copy = ops.Custom(f"{library}:Copy", lambda x: x, lambda x: x, func_type="aot")

    def construct(self, x):  # with *inputs, as Op has them, MindSpore would keep the network
        return self.copy(x)


def test_ms_32_a_library_is_unloaded_with_the_last_network_that_calls_it(tmp_path):
    source, library, unloaded = tmp_path / "copy.cc", tmp_path / "copy.so", tmp_path / "unloaded"
    source.write_text(COPY.replace("UNLOADED", str(unloaded)))
    subprocess.run([os.environ.get("CXX", "g++"), "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    net = Copy(library)
    copied = net(normal(3)).asnumpy().tolist()
    assert copied == normal(3).asnumpy().tolist() and not unloaded.exists()
    del net
    gc.collect()
    still("MS-32", unloaded.exists())


def test_ms_70_an_output_without_axes_of_a_custom_op_is_a_number(tmp_path):
    source, library = tmp_path / "copy.cc", tmp_path / "copy.so"
    source.write_text(COPY.replace("UNLOADED", str(tmp_path / "unloaded")))
    subprocess.run([os.environ.get("CXX", "g++"), "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    net = Copy(library)
    net.copy = ops.Custom(f"{library}:Copy", ([], []), (ms.float32, ms.float32), func_type="aot")
    first, _ = net(normal(1))
    still("MS-70", isinstance(first, float), first)


def test_ms_73_threads_are_as_many_as_processors_of_the_machine(tmp_path):
    graphs = "import mindspore as ms; ms.set_context(mode=ms.GRAPH_MODE); ms.set_device('CPU')\n"
    seen = threads_after(graphs, tmp_path)
    still("MS-73", seen > 2, seen)


def test_ms_33_mindspore_sets_the_threads_of_openmp_to_one():
    code = "import ctypes, mindspore; get = ctypes.CDLL(None).getenv; get.restype = ctypes.c_char_p"
    code += "; print(get(b'OMP_NUM_THREADS'))"
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    still("MS-33", done.stdout.strip().endswith("b'1'"), done.stdout)


def test_ms_34_an_error_waits_three_seconds_and_tells_its_kind_in_words_alone():
    """More memory than there is: a RuntimeError, not a MemoryError, and only after a wait."""

    class Net(nn.Cell):
        def construct(self, x):
            return ops.tile(x, (1 << 20, 1 << 20))

    start = time.monotonic()
    try:
        Net()(normal(1024, 1024)).asnumpy()
        kind = None
    except Exception as error:
        kind = type(error)
    seconds = time.monotonic() - start
    still("MS-34", kind is RuntimeError and seconds > 2, f"{kind} after {seconds:.1f} s")


def test_ms_71_an_op_that_broadcasts_keeps_sixteen_bytes_an_element():
    rows, columns = 2048, 2048
    x, kept = normal(rows, columns), {}
    for width in (columns, 1):
        y, subtract = normal(rows, width), Op(ops.Sub())
        before = resident_memory()
        subtract(x, y).asnumpy()
        kept[width] = (resident_memory() - before) / (rows * columns)
    still("MS-71", kept[1] > kept[columns] + 10, kept)


@pytest.mark.slow
def test_ms_35_the_largest_of_a_row_takes_longer_than_its_position():
    x = normal(512, 8192)
    slow = milliseconds(Op(ops.ReduceMax(keep_dims=True), -1), x)
    fast = milliseconds(Op(ops.ArgMaxWithValue(axis=-1, keep_dims=True), pick=1), x)
    still("MS-35", slow > 1.5 * fast, f"{slow:.1f} and {fast:.1f} ms")


@pytest.mark.slow
def test_ms_36_the_last_axis_of_a_higher_tensor_is_summed_on_one_core():
    op = ops.ReduceSum(keep_dims=True)
    slow, fast = milliseconds(Op(op, -1), normal(8, 64, 64, 128)), milliseconds(Op(op, -1), normal(8 * 64 * 64, 128))
    still("MS-36", slow > 3 * fast, f"{slow:.1f} and {fast:.1f} ms")


@pytest.mark.slow
def test_ms_37_all_axes_at_once_are_summed_on_one_core():
    x = normal(512, 8192)
    slow, fast = milliseconds(Op(ops.ReduceSum()), x), milliseconds(Op(ops.ReduceSum(keep_dims=True), -1), x)
    still("MS-37", slow > 3 * fast, f"{slow:.1f} and {fast:.1f} ms")


class Product(nn.Cell):
    def __init__(self):
        super().__init__()
        self.mul = ops.Mul()

    def construct(self, x):
        return self.mul(x, x)


@pytest.mark.slow
def test_ms_38_the_gradient_of_square_is_slower_than_that_of_a_product():
    x = normal(2048, 1024)
    slow, fast = milliseconds(GradientOf(Op(ops.Square())), x, x), milliseconds(GradientOf(Product()), x, x)
    still("MS-38", slow > 1.3 * fast, f"{slow:.1f} and {fast:.1f} ms")


class Mean(nn.Cell):
    def __init__(self, size):
        super().__init__()
        self.sum, self.share = ops.ReduceSum(keep_dims=True), 1.0 / size

    def construct(self, x):
        return self.sum(x, -1) * self.share


@pytest.mark.slow
def test_ms_39_the_gradient_of_a_mean_is_slower_than_that_of_a_sum():
    x, y = normal(2048, 1024), normal(2048, 1)
    slow = milliseconds(GradientOf(Op(ops.ReduceMean(keep_dims=True), -1)), x, y)
    fast = milliseconds(GradientOf(Mean(1024)), x, y)
    still("MS-39", slow > 1.5 * fast, f"{slow:.1f} and {fast:.1f} ms")


class Slices(nn.Cell):
    """The parts of the last axis, 32 and 96 long, by slicing."""

    def __init__(self):
        super().__init__()
        self.slice = ops.StridedSlice()

    def construct(self, x):
        rows, heads, size = x.shape
        step = (1, 1, 1)
        return self.slice(x, (0, 0, 0), (rows, heads, 32), step), self.slice(x, (0, 0, 32), (rows, heads, size), step)


@pytest.mark.slow
def test_ms_40_the_gradient_of_a_slice_is_slower_than_that_of_a_split():
    x, gradients = normal(2048, 8, 128), (normal(2048, 8, 32), normal(2048, 8, 96))
    slow = milliseconds(GradientOf(Slices()), x, gradients)
    fast = milliseconds(GradientOf(Op(SplitWithSize(), (32, 96), -1)), x, gradients)
    still("MS-40", slow > 2 * fast, f"{slow:.1f} and {fast:.1f} ms")


@pytest.mark.slow
def test_ms_42_collectives_on_the_cpu_only_add_and_gather(tmp_path):
    """Two workers, without the package's own kernels."""
    from parallel.msrun import run

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("msrun")), "--worker_num=2", "--local_worker_num=2", "--join=True"]
    command += [f"--log_dir={tmp_path / 'log'}", f"--master_port={port}", str(HERE / "bare_worker.py"), str(tmp_path)]
    run(command, tmp_path, 240.0)
    seen = (tmp_path / "0.txt").read_text().splitlines()
    still("MS-42", seen == ["sum works", "max fails", "reduce-scatter fails"], seen)

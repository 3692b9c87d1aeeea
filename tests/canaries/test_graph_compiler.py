"""Canaries: what MindSpore's graph compiler and its Cells do that the package works around."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import mindspore as ms
import numpy as np
import pytest
from canaries.register import still
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import One, initializer
from mindspore.nn.utils import no_init_parameters
from visits import CountsVisits

from mindspore_palm.parallel.context import DEPTH

pytestmark = pytest.mark.usefixtures("device")


def ones(*shape: int) -> Tensor:
    return Tensor(np.ones(shape, np.float32))


def zeros(name: str, *shape: int) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name)


class Double(nn.Cell):
    def construct(self, x):
        return x * 2


def test_ms_18_eager_mode_fails_beside_numpy_2():
    """In a process of its own: in MindSpore's default mode, the very first op fails, and later ones do not."""
    code = "import mindspore as ms, numpy as np; print((ms.Tensor(np.ones(2, np.float32)) + 1).asnumpy())"
    assert np.lib.NumpyVersion(np.__version__) >= "2.0.0"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    still("MS-18", done.returncode != 0 and "compiled using NumPy 1.x" in done.stderr, done.stdout)


def test_ms_19_calls_in_calls_of_a_graph_end_at_a_thousand():
    def down(x, depth):
        if depth == 0:
            return x
        return down(x, depth - 1)

    class Deep(nn.Cell):
        def construct(self, x):
            return down(x, 1100)

    ms.set_recursion_limit(1000)  # MindSpore's default
    try:
        Deep()(ones(2))
        seen = "it was compiled"
    except RuntimeError as error:
        seen = str(error).splitlines()[0]
    finally:
        ms.set_recursion_limit(DEPTH)
    still("MS-19", "Exceed function call depth limit" in seen, seen)


class Loop(nn.Cell):
    """Writes many weights, one after the other."""

    def __init__(self, count):
        super().__init__()
        self.w = ParameterTuple([zeros(f"w{i}", 1) for i in range(count)])
        self.assign, self.add = ops.Assign(), ops.Add()

    def write(self, x, w):
        self.assign(w, self.add(w, x))
        return True

    def construct(self, x):
        for w in self.w:
            self.write(x, w)
        return x


class Map(Loop):
    """The same by a map."""

    def __init__(self, count):
        super().__init__(count)
        self.map, self.partial = ops.HyperMap(), ops.Partial()

    def construct(self, x):
        self.map(self.partial(self.write, x), self.w)
        return x


@pytest.mark.slow
def test_ms_20_a_loop_that_writes_weights_compiles_for_longer_the_more_there_are():
    def seconds(kind, count):
        net, start = kind(count), time.process_time()
        net.compile(ones(1))
        return time.process_time() - start

    seconds(Loop, 10)
    loop, by_map = seconds(Loop, 800), seconds(Map, 800)
    still("MS-20", loop > 2 * by_map, f"{loop:.1f} s; by a map {by_map:.1f} s")


def test_ms_21_the_weights_of_a_cell_inside_a_function_are_not_drawn():
    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            with no_init_parameters():
                self.w = Parameter(initializer(One(), (2,)), name="w")

        def construct(self, x):
            return x * self.w

    net = Net()

    @ms.jit
    def function(x):
        return net(x)

    assert Net()(ones(2)).asnumpy().tolist() == [1, 1]  # of a Cell that is called, they are
    seen = function(ones(2)).asnumpy().tolist()
    still("MS-21", seen != [1, 1], seen)


def test_ms_22_a_weight_that_only_a_branch_uses_does_not_take_new_values():
    class Count(nn.Cell):
        def __init__(self):
            super().__init__()
            self.count, self.add = zeros("count", 1), ops.AssignAdd()

        def construct(self, x):
            out = x
            if x[0] > 0:
                out = self.add(self.count, x)
            return out

    count = Count()
    assert [float(count(ones(1)).asnumpy()[0]) for _ in range(2)] == [1, 2]
    count.count.set_data(Tensor(np.array([10], np.float32)))
    seen = float(count(ones(1)).asnumpy()[0])
    still("MS-22", seen != 11, seen)


def test_ms_23_every_call_walks_through_all_cells_inside():
    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.leaf = CountsVisits()

        def construct(self, x):
            return self.leaf(x)

    net = Net()
    for _ in range(3):
        net(ones(2))
    still("MS-23", net.leaf.visits == 3, net.leaf.visits)


def test_ms_24_every_call_checks_the_inputs_unless_the_cell_is_called_increment():
    class Net(Double):
        checks = 0

        def _check_construct_args(self, *inputs):
            self.checks += 1
            return super()._check_construct_args(*inputs)

    plain, decoding = Net(), Net()
    decoding.phase = "increment"
    for _ in range(3):
        plain(ones(2)), decoding(ones(2))
    assert decoding.checks < 3, "MS-24: MindSpore has no fast path of this name any more"
    still("MS-24", plain.checks == 3, plain.checks)


def test_ms_25_a_weight_is_renamed_by_whoever_holds_its_cell():
    class Inner(nn.Cell):
        def __init__(self):
            super().__init__()
            self.w = zeros("w", 1)

    class Outer(nn.Cell):
        def __init__(self, inner):
            super().__init__()
            self.part = inner

    inner = Inner()
    Outer(inner)
    still("MS-25", inner.w.name == "part.w", inner.w.name)


def test_ms_26_where_graphs_are_written_is_read_once(monkeypatch, tmp_path):
    Double()(ones(2))
    monkeypatch.setenv("MS_DEV_SAVE_GRAPHS", "1")
    monkeypatch.setenv("MS_DEV_SAVE_GRAPHS_PATH", str(tmp_path))
    Double()(ones(2))
    still("MS-26", not os.listdir(tmp_path), os.listdir(tmp_path))


def test_ms_27_the_receiver_of_a_method_must_be_called_self():
    class Net(nn.Cell):
        def construct(me, x):
            return x * 2

    try:
        Net()(ones(2))
        seen = "it was compiled"
    except TypeError as error:
        seen = str(error).splitlines()[0]
    still("MS-27", "number of provided arguments" in seen, seen)


NUMBERED = """
import sys
import mindspore as ms, numpy as np
ms.set_context(mode=ms.GRAPH_MODE)
class Times(ms.nn.Cell):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor
    def construct(self, x):
        return x * self.factor
print(Times(float(sys.argv[1]))(ms.Tensor(np.ones(1, np.float32))).asnumpy())
"""


def test_ms_66_another_network_is_loaded_from_the_compile_cache(tmp_path):
    (tmp_path / "script.py").write_text(NUMBERED)
    cache = {"MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": str(tmp_path / "cache")}
    printed = [
        subprocess.run(
            [sys.executable, "script.py", factor],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env={**os.environ, **cache},
        ).stdout
        for factor in ("2", "3")
    ]
    assert "[2.]" in printed[0]
    still("MS-66", "[2.]" in printed[1], printed)

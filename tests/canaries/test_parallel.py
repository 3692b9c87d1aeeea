"""Canaries: what MindSpore's partitioner does that the package works around. Each fails when MindSpore has fixed it."""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from canaries.register import still
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer
from mindspore.nn.wrap import grad_reducer
from mindspore.parallel.auto_parallel import AutoParallel

from mindspore_palm.parallel.host import build

HERE = Path(__file__).parent


class Case:
    """The graph that MindSpore's partitioner makes of one of partition_cases."""

    def __init__(self, folder: Path, name: str) -> None:
        graph, error = folder / f"{name}.ir", folder / f"{name}.error"
        self.graph = graph.read_text() if graph.exists() else ""
        self.error = error.read_text() if error.exists() else ""
        assert bool(self.graph) != bool(self.error), f"there is no case {name}"

    @property
    def ops(self) -> Counter[str]:
        """How often each op is in the graph."""
        return Counter(re.findall(r"^ *%\d+\(.*?\) = (?:PrimFunc_)?(\w+)\(", self.graph, re.MULTILINE))

    def shape(self, weight: str) -> str:
        """What one device holds of a weight, as MindSpore writes it."""
        return re.search(rf"^%para\d+_{weight}: <Ref\[Tensor\[Float32\]\], \((.*?)\)", self.graph, re.MULTILINE).group(
            1
        )


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """``case(name)``: all are partitioned once, in a process of their own."""
    from parallel.msrun import run_python

    build.extension()  # not in the process's time
    folder = tmp_path_factory.mktemp("partitioned")
    run_python(HERE / "partition_cases.py", folder, 1)
    return lambda name: Case(folder, name)


def test_ms_01_semi_auto_parallel_refuses_the_cpu(device):
    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.matmul = ops.MatMul().shard(((2, 1), (1, 1)))

        def construct(self, x):
            return self.matmul(x, x)

    ms.set_auto_parallel_context(parallel_mode="semi_auto_parallel", device_num=2, global_rank=0)
    try:
        Net()(Tensor(np.ones((2, 2), np.float32)))
        seen = "it was partitioned"
    except RuntimeError as error:
        seen = str(error).splitlines()[0]
    finally:
        ms.reset_auto_parallel_context()
    still("MS-01", seen.startswith("Invalid communication backend: CPU for semi_auto_parallel"), seen)


def test_ms_02_a_rank_above_4095_is_refused():
    try:
        ms.set_auto_parallel_context(global_rank=4096)
        seen = "it is accepted"
    except ValueError as error:
        seen = str(error)
    finally:
        ms.reset_auto_parallel_context()
    still("MS-02", "must be in [0, 4095]" in seen, seen)


def test_ms_03_auto_parallel_cannot_be_told_rank_and_number_of_devices():
    methods = [name for name in vars(AutoParallel) if not name.startswith("_")]
    public = [name for name in methods if ("device" in name and "num" in name) or "rank" in name]
    arguments = list(inspect.signature(AutoParallel.__init__).parameters)
    still("MS-03", not public and arguments == ["self", "network", "parallel_mode"], [*public, *arguments])


def test_ms_04_a_loss_that_comes_in_a_tuple_is_not_divided_by_the_devices(case):
    alone, in_tuple = case("loss_alone").ops, case("loss_in_tuple").ops
    assert alone["RealDiv"] == 1 and alone["AllReduce"] == in_tuple["AllReduce"]
    still("MS-04", in_tuple["RealDiv"] == 0, in_tuple)


def test_ms_05_the_gradient_of_x_times_x_is_rewritten_where_x_was_all_reduced(case):
    """Right are three all-reduces: of x, of its gradient, and of that of v."""
    by_square, by_mul = case("square_by_square").ops, case("square_by_mul").ops
    assert by_square["AllReduce"] == 3
    still("MS-05", by_mul["AllReduce"] > 3, by_mul)


def test_ms_06_slices_are_kept_of_every_other_block_where_the_sum_uses_x_first(case):
    gathered, wrong = case("slices_norm_first").ops["AllGather"], case("slices_sum_first").ops["AllGather"]
    assert gathered == 3  # of four blocks; the first one's input is the network's
    still("MS-06", wrong < gathered, f"{wrong} of {gathered} blocks")


def test_ms_07_an_input_whose_rows_do_not_divide_is_kept_whole_without_a_word(case):
    seen = case("slices_of_six_rows")
    still("MS-07", not seen.error and seen.ops["AllGather"] == 0, seen.error or seen.ops)


def test_ms_08_a_weight_is_sharded_by_rows_or_silently_not_at_all(case):
    assert case("rows_that_divide").shape("w") == "2, 8"
    seen = case("rows_that_do_not")
    still("MS-08", not seen.error and seen.shape("w") == "6, 8", seen.error)  # 8 columns could be cut by 4


def test_ms_09_small_weights_are_not_sharded_by_default(case):
    seen = case("default_threshold")
    still("MS-09", not seen.error and seen.shape("w") == "8, 8", seen.error)


def test_ms_10_what_an_optimizer_sums_is_the_sum_of_its_slice(case):
    seen = case("rows_that_divide").ops
    assert seen["ReduceScatter"] == 1  # the gradient comes as a slice
    still("MS-10", seen["AllReduce"] == 1, seen)  # of the loss alone


def test_ms_11_a_step_with_an_input_of_none_is_not_partitioned(case):
    seen = case("input_that_is_none").error
    still("MS-11", "_VirtualDataset init failed" in seen, seen)


def test_ms_12_cross_entropy_cannot_be_cut_over_the_vocabulary(case):
    dense, sparse = case("dense_cross_entropy"), case("sparse_cross_entropy")
    ignored = not sparse.error and not sparse.ops["AllReduce"] and not sparse.ops["StridedSlice"]
    still("MS-12", "init failed" in dense.error and ignored, (dense.error, sparse.ops))


def test_ms_13_ascend_has_no_groups_of_twelve(case):
    assert case("gpu_of_2x12").graph and case("ascend_of_3x8").graph
    still("MS-13", bool(case("ascend_of_2x12").error))


def test_ms_14_twelve_devices_are_refused(case):
    still("MS-14", "Parallel init failed" in case("gpu_of_1x12").error)


def test_ms_15_slices_of_different_weights_are_drawn_equal(monkeypatch):
    monkeypatch.setattr(sys.modules["mindspore.common.seed"], "_GLOBAL_SEED", 1)  # ms.set_seed(1), for this test alone
    state = np.random.get_state()
    drawn = [initializer(Normal(1.0), (4, 4)).init_data(slice_index=0, shape=(2, 4)).asnumpy() for _ in range(2)]
    np.random.set_state(state)
    still("MS-15", np.array_equal(*drawn), drawn)


def test_ms_53_reductions_of_one_tensor_are_merged_whatever_they_do(case):
    seen = re.findall(r"= AllReduce\(.*? op: \"(\w+)\"", case("maximum_and_minimum").graph)
    assert "max" in seen
    still("MS-53", "min" not in seen, seen)


def test_ms_58_a_kernel_that_is_reshaped_and_split_is_moved_between_devices(case):
    named, by_strategy = case("kernel_by_mesh_axes").ops, case("kernel_by_strategy").ops
    assert named["AllReduce"] == 1 and not named["AllGather"] and not named["AlltoAll"]  # of the sum alone
    still("MS-58", by_strategy["AllGather"] + by_strategy["AlltoAll"] > 0, by_strategy)


def test_ms_59_an_optimizer_cannot_reshape_what_it_sums_along_a_slice(case):
    assert not case("column_by_expand").error
    seen = case("column_by_reshape").error
    still("MS-59", "x_shape must be equal to out_shape" in seen, seen)


def test_ms_60_a_pipeline_has_no_gradient_of_two_outputs(case):
    assert not case("pipeline_of_1").error
    seen = case("pipeline_of_2").error
    still("MS-60", "Can not find the loss cnode for multi output" in seen, seen)


def test_ms_67_full_gradients_cross_pods_without_fp32_sync(case):
    """A weight of 8 x 8 in two shards, each on two devices: the shard alone should be all-reduced."""

    def reduced(name):
        found = re.findall(
            r"= (AllReduce|ReduceScatter)\(.*?mirror.*?\n *: \(<Tensor\[(\w+)\], \((\d+), 8\)>\)", case(name).graph
        )
        return {op: (dtype, int(rows)) for op, dtype, rows in found}

    assert reduced("gradients_in_32_bits") == {"ReduceScatter": ("Float32", 8), "AllReduce": ("Float32", 4)}
    seen = reduced("gradients_in_16_bits")
    still("MS-67", seen == {"ReduceScatter": ("Float32", 8), "AllReduce": ("Float16", 8)}, seen)


def test_ms_62_sums_of_gradients_are_cleared_by_a_product():
    seen = inspect.getsource(grad_reducer)
    still("MS-62", "ops.tensor_mul(accu_grad, 0.0)" in seen, seen[:2000])


def test_ms_72_a_graph_of_all_layers_gathers_a_weight_once_for_each_of_them(case):
    """Weights of 2 x 8 on each of 4 devices: the graph of three layers gathers 2 x 4 x 4 x 4 rows."""
    assert case("shared_in_front").ops["AllGather"] >= 3 and case("shared_once_gathered").ops["AllGather"] == 3
    still("MS-72", "'x2_row': 128" in case("shared_for_good").error, case("shared_for_good").error)

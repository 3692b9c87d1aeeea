"""The smallest networks on which MindSpore's partitioner shows its faults, partitioned in one process.

``partition_cases.py FOLDER`` writes, for each case, FOLDER/NAME.ir, the graph after the partitioner, or, if MindSpore
refuses it, FOLDER/NAME.error. Nothing runs: the process plays rank 0 of some devices. All parts together take seconds.
"""

from __future__ import annotations

import os
import shutil
import sys
from functools import partial
from pathlib import Path

OUT = Path(sys.argv[1])
GRAPHS = OUT / "graphs"
# read once, when MindSpore is imported
os.environ.update(MS_DEV_SAVE_GRAPHS="1", MS_DEV_SAVE_GRAPHS_PATH=str(GRAPHS), MS_DEV_DUMP_IR_PASSES="validate")

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import Parameter, Tensor, lazy_inline, nn, ops  # noqa: E402
from mindspore.ops.auto_generate import Identity, SplitWithSize  # noqa: E402
from mindspore.parallel import Layout  # noqa: E402
from mindspore.parallel.auto_parallel import AutoParallel  # noqa: E402
from mindspore.parallel.nn import Pipeline  # noqa: E402

from mindspore_palm.parallel import host  # noqa: E402
from mindspore_palm.parallel.context import use_graphs  # noqa: E402

DEVICES = 4
ONE, TWO = ((1, 1),), ((1, 1), (1, 1))  # strategies of ops of one and of two inputs that nobody cuts


def ones(*shape: int) -> Tensor:
    return Tensor(np.ones(shape, np.float32))


def weight(name: str, *shape: int) -> Parameter:
    return Parameter(ones(*shape), name=name)


def partition(
    name, cell, *inputs, devices=DEVICES, target="GPU", hsdp=None, strategy="full_batch", stages=1, exact=True
):
    """Partitions a network for so many devices, and writes what came."""
    before = set(GRAPHS.rglob("*validate*.ir"))
    host.install_dry_run(0, devices, target)
    whole = AutoParallel(cell, parallel_mode="semi_auto")
    whole._device_num, whole._global_rank = devices, 0
    whole.dataset_strategy(strategy)
    if hsdp is not None:
        whole.hsdp(**hsdp)
    if stages > 1:
        whole.pipeline(stages)
    if not exact:
        whole.disable_gradient_fp32_sync()
    try:
        whole.compile(*inputs)
        raise AssertionError(f"{name}: the dry run did not end at the back end")
    except host.DryRunComplete:
        graph = max(set(GRAPHS.rglob("*validate*.ir")) - before, key=lambda file: file.stat().st_mtime)
        shutil.copy(graph, OUT / f"{name}.ir")
    except (RuntimeError, ValueError) as error:
        (OUT / f"{name}.error").write_text(str(error))
    finally:
        ms.reset_auto_parallel_context()


class Gradients(nn.Cell):
    """The gradients of a network's weights."""

    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net, self.gradients = net, ops.grad(net, None, net.trainable_params())

    def construct(self, x):
        return self.gradients(x)


class Loss(nn.Cell):
    """sum(x w), over data and model; ``results``: as a number, or in a tuple of two."""

    def __init__(self, results=1):
        super().__init__()
        self.w, self.results = weight("w", 8, 8), results
        self.matmul, self.sum = ops.MatMul().shard(((2, 1), (1, 2))), ops.ReduceSum().shard(((2, 2),))

    def construct(self, x):
        loss = self.sum(self.matmul(x, self.w))
        return loss if self.results == 1 else (loss, loss * 2.0)


class LossAndGradient(nn.Cell):
    """The loss and its gradient; not in a tuple of tuples, which MindSpore does not partition."""

    def __init__(self, loss):
        super().__init__(auto_prefix=False)
        self.loss, self.auxiliary = loss, loss.results > 1
        self.gradients = ops.value_and_grad(loss, None, loss.trainable_params(), has_aux=self.auxiliary)

    def construct(self, x):
        loss, gradients = self.gradients(x)
        return loss[0] if self.auxiliary else loss, gradients[0]


class SumOfSquares(nn.Cell):
    """sum(y^2 v) of a y that is all-reduced, squared by Mul or by Square."""

    def __init__(self, by_square):
        super().__init__()
        self.w, self.v, self.by_square = weight("w", 8, 8), weight("v", 4, 8), by_square
        self.matmul = ops.MatMul().shard(((1, DEVICES), (DEVICES, 1)))
        self.square = ops.Square().shard(ONE) if by_square else ops.Mul().shard(TWO)
        self.times, self.sum = ops.Mul().shard(TWO), ops.ReduceSum().shard(ONE)

    def construct(self, x):
        y = self.matmul(x, self.w)
        square = self.square(y) if self.by_square else self.square(y, y)
        return self.sum(self.times(square, self.v))


class Half(nn.Cell):
    """sum(x w), over data, in float16."""

    def __init__(self):
        super().__init__()
        self.w, self.cast = weight("w", 8, 8), ops.Cast()
        self.matmul, self.sum = ops.MatMul().shard(((DEVICES, 1), (1, 1))), ops.ReduceSum().shard(((DEVICES, 1),))

    def construct(self, x):
        y = self.matmul(self.cast(x, ms.float16), self.cast(self.w, ms.float16))
        return self.sum(self.cast(y, ms.float32))


class SplitKernel(nn.Cell):
    """sum(x a), over 2 data and 2 model, where a kernel [8, heads, (a | b)] is split; ``named``: by mesh axes."""

    def __init__(self, named):
        super().__init__()
        mesh, self.w = Layout((2, 2), ("data", "model")), weight("w", 8, 16)
        self.named, self.identity = named, Identity().shard((mesh("None", "model"),))
        self.split = SplitWithSize().shard((mesh("None", "model", "None"),) if named else ((1, 2, 1),))
        self.matmul, self.sum = ops.MatMul().shard(((2, 1), (1, 2))), ops.ReduceSum().shard(((2, 2),))
        self.reshape = ops.Reshape()

    def construct(self, x):
        w = self.identity(self.w) if self.named else self.w
        a, _ = self.split(self.reshape(w, (8, 4, 4)), (1, 3), -1)
        return self.sum(self.matmul(x, self.reshape(a, (8, 4))))


class Norm(nn.Cell):
    def __init__(self):
        super().__init__()
        self.square, self.times = ops.Square().shard(ONE), ops.Mul().shard(TWO)

    def construct(self, x):
        return self.times(self.square(x), x)


class Block(nn.Cell):
    """x + norm(x) a b; ``norm_first``: Depend makes the norm the first user of x, not the sum."""

    def __init__(self, number, norm_first):
        super().__init__()
        self.a, self.b, self.norm_first = weight(f"a{number}", 8, 8), weight(f"b{number}", 8, 8), norm_first
        self.norm, self.depend, self.add = Norm(), ops.Depend(), ops.Add().shard(TWO)
        self.into, self.out_of = ops.MatMul().shard(((1, 1), (1, 4))), ops.MatMul().shard(((1, 4), (4, 1)))

    def construct(self, x):
        y = self.norm(x)
        out = self.out_of(self.into(y, self.a), self.b)
        if self.norm_first:
            x = self.depend(x, y)
        return self.add(x, out)


class Tower(nn.Cell):
    """Four blocks that are recomputed from slices of their inputs."""

    def __init__(self, norm_first):
        super().__init__()
        self.blocks = nn.CellList([Block(number, norm_first) for number in range(4)])
        self.sum = ops.ReduceSum().shard(ONE)
        for block in self.blocks:
            block.recompute(recompute_slice_activation=True)

    def construct(self, x):
        for block in self.blocks:
            x = block(x)
        return self.sum(x)


class DataParallel(nn.Cell):
    """sum(x w), every device with its own rows of x."""

    def __init__(self, rows):
        super().__init__()
        self.w = weight("w", rows, 8)
        self.matmul, self.sum = ops.MatMul().shard(((DEVICES, 1), (1, 1))), ops.ReduceSum().shard(((DEVICES, 1),))

    def construct(self, x, factor=None):
        if factor is not None:
            x = x * factor
        return self.sum(self.matmul(x, self.w))


class Descent(nn.Optimizer):
    """w - g * sum(g^2): an optimizer that measures its gradients."""

    def __init__(self, weights):
        super().__init__(0.1, weights)
        self.square, self.sum, self.assign = ops.Square(), ops.ReduceSum(), ops.Assign()

    def construct(self, gradients):
        for i in range(len(gradients)):
            size = self.sum(self.square(gradients[i]))
            self.assign(self.parameters[i], self.parameters[i] - gradients[i] * size)
        return True


class Spread(nn.Optimizer):
    """max(g) - 2 min(g), over all devices: two reductions of one tensor."""

    def __init__(self, weights):
        super().__init__(0.1, weights)
        self.max, self.min, self.assign = ops.AllReduce("max"), ops.AllReduce("min"), ops.Assign()

    def construct(self, gradients):
        for i in range(len(gradients)):
            self.assign(self.parameters[i], self.max(gradients[i]) - 2.0 * self.min(gradients[i]))
        return True


class ByRow(nn.Optimizer):
    """w - g * sum(g of its row): the sums become a column by ExpandDims or by Reshape."""

    def __init__(self, weights, by_reshape=False):
        super().__init__(0.1, weights)
        self.by_reshape, self.sum, self.assign = by_reshape, ops.ReduceSum(), ops.Assign()
        self.reshape, self.expand = ops.Reshape(), ops.ExpandDims()

    def construct(self, gradients):
        for i in range(len(gradients)):
            rows = self.sum(gradients[i], 1)
            rows = self.reshape(rows, (-1, 1)) if self.by_reshape else self.expand(rows, 1)
            self.assign(self.parameters[i], self.parameters[i] - gradients[i] * rows)
        return True


class Step(nn.Cell):
    """One step of an optimizer."""

    def __init__(self, net, optimizer=Descent):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer(net.trainable_params())
        self.gradients = ops.value_and_grad(net, None, self.optimizer.parameters)

    def construct(self, x):
        loss, gradients = self.gradients(x)
        return ops.depend(loss, self.optimizer(gradients))


class CrossEntropy(nn.Cell):
    def __init__(self, op, *strategies):
        super().__init__()
        self.op, self.several = op.shard(strategies), isinstance(op, ops.SoftmaxCrossEntropyWithLogits)

    def construct(self, logits, targets):
        loss = self.op(logits, targets)
        return loss[0] if self.several else loss


class OverModel(nn.Cell):
    """sum(x w), over so many data and model ranks."""

    def __init__(self, data, model):
        super().__init__()
        self.w = weight("w", 24, 24)
        self.matmul = ops.MatMul().shard(((data, 1), (1, model)))
        self.sum = ops.ReduceSum().shard(((data, model),))

    def construct(self, x):
        return self.sum(self.matmul(x, self.w))


class OnStage(nn.Cell):
    """x w on a stage, or its sum as [1]."""

    def __init__(self, stage, name, summed=False):
        super().__init__()
        self.w, self.summed, self.pipeline_stage = weight(name, 8, 8), summed, stage
        self.matmul, self.sum = ops.MatMul().shard(TWO), ops.ReduceSum(keep_dims=True).shard(ONE)

    def construct(self, x):
        y = self.matmul(x, self.w)
        return self.sum(y) if self.summed else y


class TwoStages(nn.Cell):
    def __init__(self):
        super().__init__()
        self.first, self.last = OnStage(0, "first"), OnStage(1, "last", summed=True)

    def construct(self, x):
        return self.last(self.first(x))


class PipelineStep(nn.Cell):
    """Gradients of two micro-batches in a pipeline; ``results``: of the function to differentiate."""

    def __init__(self, results):
        super().__init__(auto_prefix=False)
        self.net, self.results = Pipeline(TwoStages(), 2), results
        self.gradients = ops.value_and_grad(self.objective, None, self.net.trainable_params(), has_aux=results == 2)

    def objective(self, x):
        total = self.net(x)
        return (total, total * 2.0) if self.results == 2 else total

    def construct(self, x):
        return self.gradients(x)[1]


class Shared(nn.Cell):
    """x w, over data. All such Cells have one graph, until the front end inlines it or for good."""

    def __init__(self, number):
        super().__init__()
        self.w = weight(f"w{number}", 8, 8)
        self.matmul = ops.MatMul().shard(((DEVICES, 1), (1, 1)))

    def construct(self, x):
        return self.matmul(x, self.w)


class SharedInFront(Shared):
    __init__ = lazy_inline(attrs=[], policy="front")(Shared.__init__)


class SharedForGood(Shared):
    __init__ = lazy_inline(attrs=[])(Shared.__init__)


class SumOfThree(nn.Cell):
    """The sum of x w0 w1 w2."""

    def __init__(self, kind):
        super().__init__()
        self.layers = nn.CellList([kind(number) for number in range(3)])
        self.sum, self.results = ops.ReduceSum().shard(((DEVICES, 1),)), 1

    def construct(self, x):
        return self.sum(self.layers[2](self.layers[1](self.layers[0](x))))


def main() -> None:
    use_graphs()
    ms.set_device("CPU")
    x, square = ones(4, 8), ones(24, 24)
    all_shards = {"shard_size": DEVICES, "threshold": 0, "optimizer_level": "level1"}
    partition("loss_alone", LossAndGradient(Loss()), x)
    partition("loss_in_tuple", LossAndGradient(Loss(results=2)), x)
    partition("square_by_mul", Gradients(SumOfSquares(by_square=False)), x)
    partition("square_by_square", Gradients(SumOfSquares(by_square=True)), x)
    partition("slices_sum_first", Gradients(Tower(norm_first=False)), x)
    partition("slices_norm_first", Gradients(Tower(norm_first=True)), x)
    partition("slices_of_six_rows", Gradients(Tower(norm_first=True)), ones(6, 8))
    partition("rows_that_divide", Step(DataParallel(8)), x, hsdp=all_shards)
    twice = {**all_shards, "optimizer_level": "level3"}  # gathered again for the backward pass
    partition("shared_in_front", LossAndGradient(SumOfThree(SharedInFront)), x, hsdp=twice)
    partition("shared_once_gathered", LossAndGradient(SumOfThree(SharedForGood)), x, hsdp=all_shards)
    partition("shared_for_good", LossAndGradient(SumOfThree(SharedForGood)), x, hsdp=twice)
    partition("rows_that_do_not", Step(DataParallel(6)), ones(4, 6), hsdp=all_shards)
    partition("default_threshold", Step(DataParallel(8)), x, hsdp={"shard_size": DEVICES, "optimizer_level": "level1"})
    for exact in (False, True):
        two_of_two = {"shard_size": DEVICES // 2, "threshold": 0, "optimizer_level": "level1"}
        partition(f"gradients_in_{32 if exact else 16}_bits", Gradients(Half()), x, hsdp=two_of_two, exact=exact)
    partition("maximum_and_minimum", Step(DataParallel(8), Spread), x)
    partition("column_by_expand", Step(DataParallel(8), ByRow), x, hsdp=all_shards)
    partition("column_by_reshape", Step(DataParallel(8), partial(ByRow, by_reshape=True)), x, hsdp=all_shards)
    for named in (False, True):
        name = "kernel_by_mesh_axes" if named else "kernel_by_strategy"
        partition(name, SplitKernel(named), x, strategy=((2, 1),))
    partition("input_that_is_none", DataParallel(8), ones(1, 8), None, strategy=((DEVICES, 1), ()))
    cut = (1, DEVICES)
    partition("dense_cross_entropy", CrossEntropy(ops.SoftmaxCrossEntropyWithLogits(), cut, cut), x, x)
    targets = Tensor(np.arange(4, dtype=np.int32))
    partition("sparse_cross_entropy", CrossEntropy(ops.SparseSoftmaxCrossEntropyWithLogits(), cut, (1,)), x, targets)
    partition("gpu_of_2x12", OverModel(2, 12), square, devices=24)
    partition("ascend_of_2x12", OverModel(2, 12), square, devices=24, target="Ascend")
    partition("ascend_of_3x8", OverModel(3, 8), square, devices=24, target="Ascend")
    for results in (1, 2):
        partition(f"pipeline_of_{results}", PipelineStep(results), x, devices=2, stages=2)
    partition("gpu_of_1x12", OverModel(1, 12), square, devices=12)


if __name__ == "__main__":
    main()

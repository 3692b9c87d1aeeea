"""A worker of test_host.py: writes its results to OUT/rank_R.npz, which test_host.py compares.

msrun starts this file. It starts itself a second time, and exits with 0 whatever the exit code of that process: msrun
kills all workers as soon as one fails, and here they must end by themselves when one of them is killed.

``host_worker.py OUT dry`` is a single process, which plays workers of large runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

WORKERS = 4
DTYPES = ("float32", "int32", "float16")
SIZES = {"small": 6, "large": 140_001}  # elements per worker: one chunk, several chunks
GROUPS = {  # name -> its members, for each worker
    "world": [[0, 1, 2, 3]] * 4,
    "near": [[0, 1], [0, 1], [2, 3], [2, 3]],
    "far": [[0, 2], [1, 3], [0, 2], [1, 3]],
}
KINDS = ("gather", "reduce", "scatter")
MESSAGES = {  # dtype -> shape, of what passes from worker to worker; MindSpore's Send takes no others but bfloat16
    "int8": (3, 1),
    "int32": (2, 2),
    "float16": (7,),
    "float32": (300_000,),
    "float64": (1,),
}
BATCH, WIDTH, HIDDEN = 8, 12, 16
RATE = 0.5


def numbers(rank: int, dtype: str, size: int) -> np.ndarray:
    """A worker's input, [size]; no sum of them is exact."""
    drawn = np.random.default_rng([rank, size]).standard_normal(size) * 100
    return drawn.astype(dtype)


def matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [BATCH, WIDTH], w [WIDTH, HIDDEN], v [HIDDEN, WIDTH] of the network that is partitioned."""
    draw = np.random.default_rng(3)
    shapes = ((BATCH, WIDTH), (WIDTH, HIDDEN), (HIDDEN, WIDTH))
    return tuple(draw.standard_normal(shape).astype(np.float32) / 4 for shape in shapes)


def message(dtype: str, step: int) -> np.ndarray:
    """The message of the first worker."""
    return np.asarray(np.random.default_rng(step).uniform(0, 100, MESSAGES[dtype])).astype(dtype)


def messages(rank: int) -> dict[str, np.ndarray]:
    """Tensors of all kinds pass from the first worker through the others to the last, in two steps."""
    import mindspore as ms
    from mindspore import nn, ops

    world = "mccl_world_group"

    class Pass(nn.Cell):
        def __init__(self):
            super().__init__()
            self.first, self.last = rank == 0, rank == WORKERS - 1
            self.receive, self.send = [], []
            for tag, (dtype, shape) in enumerate(MESSAGES.items()):
                kind = getattr(ms, dtype)
                self.receive.append(ops.Receive(tag, max(rank - 1, 0), list(shape), kind, group=world))
                self.send.append(ops.Send(tag, min(rank + 1, WORKERS - 1), group=world))
            self.depend = ops.Depend()

        def construct(self, inputs):
            out = ()
            for i in range(len(self.send)):
                x = inputs[i] if self.first else self.receive[i]()
                out = out + (x if self.last else self.depend(x, self.send[i](x)),)  # noqa: RUF005 - as above
            return out

    passing, results = Pass(), {}
    for step in range(2):
        passed = passing(tuple(ms.Tensor(message(dtype, step)) for dtype in MESSAGES))
        results |= {f"{dtype}/{step}": x.asnumpy().copy() for dtype, x in zip(MESSAGES, passed, strict=True)}
    return results


def collectives(rank: int) -> dict[str, np.ndarray]:
    """All collectives, dtypes, sizes and groups in one graph: only the graph orders them."""
    import mindspore as ms
    from mindspore import nn, ops
    from mindspore.communication import create_group

    names = {}
    for group, members in GROUPS.items():
        ranks = members[rank]
        names[group] = "mccl_world_group" if group == "world" else f"{group}_{ranks[0]}"
        if group != "world":
            create_group(names[group], ranks)
    keys = [(g, d, s, k) for g in GROUPS for d in DTYPES for s in SIZES for k in KINDS]

    class All(nn.Cell):
        def __init__(self):
            super().__init__()
            kinds = {"gather": ops.AllGather, "reduce": ops.AllReduce, "scatter": ops.ReduceScatter}
            self.todo = [kinds[k](group=names[g]) for g, _, _, k in keys]

        def construct(self, inputs):
            out = ()
            for i in range(len(self.todo)):
                out = out + (self.todo[i](inputs[i]),)  # noqa: RUF005 - MindSpore cannot unpack into a tuple here
            return out

    def input_of(group, dtype, size, kind):
        return numbers(rank, dtype, SIZES[size] * (len(GROUPS[group][rank]) if kind == "scatter" else 1))

    results = All()(tuple(ms.Tensor(input_of(*key)) for key in keys))
    return {"/".join(key): result.asnumpy().copy() for key, result in zip(keys, results, strict=True)}


def reductions(rank: int) -> dict[str, np.ndarray]:
    """Maximum and minimum, also of NaN."""
    import mindspore as ms
    from mindspore import nn, ops

    class Both(nn.Cell):
        def __init__(self):
            super().__init__()
            self.max, self.min = ops.AllReduce("max"), ops.AllReduce("min")

        def construct(self, x, y):
            return self.max(x), self.min(y)

    x = numbers(rank, "float32", 9)
    x[rank] = np.nan
    # Two inputs: MindSpore's front end merges the maximum and the minimum of one tensor, and computes one of them.
    high, low = Both()(ms.Tensor(x), ms.Tensor(x))
    return {"max": high.asnumpy().copy(), "min": low.asnumpy().copy()}


def networks(rank: int) -> dict[str, np.ndarray]:
    """Several networks in one process, one after the other: partitioned in three ways, and not at all."""
    import mindspore as ms
    from mindspore import Parameter, Tensor, nn, ops
    from mindspore.parallel.auto_parallel import AutoParallel

    from mindspore_palm.parallel import host

    x, w, v = matrices()

    class Net(nn.Cell):
        """mean over the batch of sum((x @ w @ v)^2)."""

        def __init__(self, name, first=None, second=None):
            super().__init__()
            self.w = Parameter(Tensor(w), name=f"{name}.w")
            self.v = Parameter(Tensor(v), name=f"{name}.v")
            self.into, self.out_of = ops.MatMul(), ops.MatMul()
            self.square, self.sum = ops.Square(), ops.ReduceSum()
            if first is not None:
                self.into.shard(first)
                self.out_of.shard(second)
                self.square.shard(((first[0][0], 1),))
                self.sum.shard(((first[0][0], 1),))

        def construct(self, x):
            return self.sum(self.square(self.out_of(self.into(x, self.w), self.v))) / BATCH

    def parallel(**more):
        ms.reset_auto_parallel_context()
        ms.set_auto_parallel_context(
            parallel_mode="semi_auto_parallel", device_num=WORKERS, global_rank=rank, full_batch=True, **more
        )

    def train(net):
        step = nn.TrainOneStepCell(net, nn.SGD(net.trainable_params(), RATE))
        step.set_train()
        return step

    results, data = {}, Tensor(x)

    def save(name, loss, net):
        results[f"{name}/loss"] = loss.asnumpy()
        results[f"{name}/w"], results[f"{name}/v"] = net.w.asnumpy().copy(), net.v.asnumpy().copy()

    parallel()
    tensor = Net("tensor", ((2, 1), (1, 2)), ((2, 2), (2, 1)))
    first = train(tensor)
    save("tensor", first(data), tensor)
    evaluated = Net("evaluated", ((4, 1), (1, 1)), ((4, 1), (1, 1)))
    results["evaluated/loss"] = evaluated(data).asnumpy()

    ms.reset_auto_parallel_context()
    plain = Net("plain")
    save("plain", train(plain)(data), plain)
    results["plain/device"] = np.array(ms.get_context("device_target"))

    parallel(enable_parallel_optimizer=True, parallel_optimizer_config={"parallel_optimizer_threshold": 0})
    sharded = Net("sharded", ((2, 1), (1, 2)), ((2, 2), (2, 1)))
    save("sharded", train(sharded)(data), sharded)

    ms.reset_auto_parallel_context()
    newer = Net("newer", ((4, 1), (1, 1)), ((4, 1), (1, 1)))
    step = AutoParallel(train(newer), parallel_mode="semi_auto")
    step.dataset_strategy("full_batch")
    step.hsdp(4, threshold=0, optimizer_level="level1")
    save("newer", step(data), newer)

    host.install_dry_run(rank + 4, 16)
    ms.set_auto_parallel_context(parallel_mode="semi_auto_parallel", device_num=16, full_batch=True)
    try:
        Net("dry", ((4, 1), (1, 4)), ((4, 4), (4, 1))).compile(data)
    except host.DryRunComplete as complete:
        results["dry"] = np.array(str(complete))
    host.install(rank, WORKERS)

    parallel()
    save("again", first(data), tensor)  # compiled long ago; a second step
    save("last", train(last := Net("last", ((2, 1), (1, 2)), ((2, 2), (2, 1))))(data), last)
    ms.reset_auto_parallel_context()
    return results


def disagree(rank: int) -> dict[str, np.ndarray]:
    """Worker 2 has a larger input than the others."""
    import mindspore as ms
    from mindspore import nn, ops

    class Reduce(nn.Cell):
        def __init__(self):
            super().__init__()
            self.reduce = ops.AllReduce()

        def construct(self, x):
            return self.reduce(x)

    try:
        Reduce()(ms.Tensor(np.ones(5 if rank == 2 else 4, np.float32))).asnumpy()
    except RuntimeError as error:
        return {"disagree": np.array(str(error))}
    return {"disagree": np.array("")}


def lose_one(rank: int) -> dict[str, np.ndarray]:
    """Worker 3 is killed while the others wait for it."""
    import mindspore as ms
    from mindspore import nn, ops

    if rank == 3:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    class Gather(nn.Cell):
        def __init__(self):
            super().__init__()
            self.gather = ops.AllGather()

        def construct(self, x):
            return self.gather(x)

    start = time.monotonic()
    try:
        Gather()(ms.Tensor(np.ones(4, np.float32))).asnumpy()
        message = ""
    except RuntimeError as error:
        message = str(error)

    class Receive(nn.Cell):
        def __init__(self):
            super().__init__()
            self.receive = ops.Receive(99, 3, [4], ms.float32, group="mccl_world_group")

        def construct(self):
            return self.receive()

    results = {"lost": np.array(message), "lost/seconds": np.array(time.monotonic() - start)}
    try:
        Receive()().asnumpy()
    except RuntimeError as error:
        results["lost/receive"] = np.array(str(error))
    return results


def work(out: Path) -> None:
    import mindspore as ms
    from host_pipeline import pipeline
    from mindspore.communication import get_group_size, get_rank, init

    from mindspore_palm.parallel import host
    from mindspore_palm.parallel.context import use_graphs

    use_graphs()
    ms.set_device("CPU")
    init()
    rank = get_rank()
    (out / f"pid_{rank}").write_text(str(os.getpid()))
    host.install(rank, get_group_size())
    results: dict[str, np.ndarray] = {}
    for check in (collectives, reductions, messages, networks, pipeline, disagree, lose_one):
        if rank == 3 and check is lose_one:
            np.savez(out / "rank_3.npz", **results)
        results.update(check(rank))
    np.savez(out / f"rank_{rank}.npz", **results)
    (out / f"done_{rank}").touch()  # from here on, MindSpore may crash (MS-54)


def dry() -> None:
    """Plays workers on GPU and Ascend; between and after these, a network runs on CPU. Prints the outcomes."""
    import resource

    import mindspore as ms
    from mindspore import Parameter, Tensor, nn, ops
    from mindspore.common.initializer import Normal, initializer
    from mindspore.communication import get_group_size, get_rank

    from mindspore_palm.parallel import host
    from mindspore_palm.parallel.context import use_graphs

    class Net(nn.Cell):
        def __init__(self, name, size, data, model):
            super().__init__()
            self.w = Parameter(initializer(Normal(), (size, size), ms.float32), name=name)
            self.matmul, self.sum = ops.MatMul(), ops.ReduceSum()
            if data * model > 1:
                self.matmul.shard(((data, 1), (1, model)))
                self.sum.shard(((data, model),))

        def construct(self, x):
            return self.sum(self.matmul(x, self.w))

    def here(name):
        ms.reset_auto_parallel_context()
        Net(name, 8, 1, 1)(Tensor(np.ones((2, 8), np.float32))).asnumpy()
        return ms.get_context("device_target")

    use_graphs()
    ms.set_device("CPU")
    for rank, devices, target, model in ((5, 6144, "GPU", 12), (6143, 6144, "GPU", 12), (5, 6144, "Ascend", 16)):
        host.install_dry_run(rank, devices, target)
        ms.set_auto_parallel_context(
            parallel_mode="semi_auto_parallel",
            device_num=devices,
            full_batch=True,
            enable_parallel_optimizer=True,
            parallel_optimizer_config={"parallel_optimizer_threshold": 0},
        )
        size = 8 * devices  # 9.7 GB of weights
        net = Net(f"w{rank}{target}", size, devices // model, model)
        step = nn.TrainOneStepCell(net, nn.SGD(net.trainable_params(), RATE))
        step.set_train()
        try:
            step.compile(Tensor(shape=(devices, size), dtype=ms.float32))
            ending = "went on"
        except host.DryRunComplete:
            ending = "complete"
        print(target, get_rank(), get_group_size(), ending, here(f"{rank}{target}"))
    host.uninstall()
    print("after", get_rank(), get_group_size(), here("after"))
    print("MB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


if __name__ == "__main__":
    mode = sys.argv[2] if len(sys.argv) > 2 else "start"
    if mode == "work":
        work(Path(sys.argv[1]))
    elif mode == "dry":
        dry()
    else:
        Path(sys.argv[1], f"group_{os.getpid()}").write_text(str(os.getpid()))  # msrun gives each worker a group
        done = subprocess.run([sys.executable, __file__, sys.argv[1], "work"], check=False)
        if os.environ["MS_ROLE"] == "MS_WORKER":
            (Path(sys.argv[1]) / f"ended_{os.environ['RANK_ID']}").write_text(str(done.returncode))

"""Cost of semi-auto parallel on CPU workers: the step on several meshes, its phases, and its collectives.

    python benchmarks/parallel.py [--meshes 1,1,1 1,2,2] [--shape 0] [--steps 20]

Workers share the cores of one machine, so more of them are not faster: the overhead of sharding is measured. The output
has medians on rank 0, in ms: the loss (forward), loss and gradients (with all collectives of weights and gradients),
and the full step with Adafactor; then each kind of collective by itself, in the sizes of a layer of this shape.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from train_step import SHAPES, model_config, tokens  # noqa: E402 - found by the path above

MESHES = ("1,1,1", "1,2,1", "1,1,2", "1,2,2")


def median_ms(run, steps):
    for _ in range(3):
        run()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def measure(sizes, shape, steps):
    """Milliseconds of each phase, by name; called in a worker."""
    import numpy as np
    from mindspore import Tensor, nn, ops

    from mindspore_palm.config import OptimizerConfig
    from mindspore_palm.model.loss import Loss
    from mindspore_palm.model.palm import PaLM
    from mindspore_palm.optim import make_optimizer
    from mindspore_palm.parallel.axes import Layout, layout
    from mindspore_palm.parallel.context import join_workers, open_device, partition, this_rank
    from mindspore_palm.parallel.mesh import Mesh
    from mindspore_palm.train.evaluate import Evaluator
    from mindspore_palm.train.step import BATCH_AXES, Objective, TrainStep

    open_device("CPU")
    mesh = Mesh(*sizes)
    join_workers(mesh.devices, "CPU")
    inputs, targets = tokens(shape)

    class Gradients(nn.Cell):
        def __init__(self, objective, parameters):
            super().__init__(auto_prefix=False)
            self.gradients = ops.value_and_grad(objective, None, parameters, has_aux=True)

        def construct(self, inputs, targets, count):
            (_, loss, _), gradients = self.gradients(inputs, targets, count)
            return ops.depend(loss, gradients)

    with layout(Layout(mesh)) as mesh_layout:
        palm = PaLM(model_config(shape))
        loss = Loss(palm)
        step = TrainStep(loss, make_optimizer(palm.trainable_params(), OptimizerConfig(), 1), clip_norm=1.0)
        evaluator = Evaluator(palm, np.ones(palm.config.vocab_size, np.int32))
        gradients = partition(Gradients(Objective(loss), palm.trainable_params()).set_train(), *BATCH_AXES)
        rows = mesh_layout.rows(this_rank(), len(inputs))
        local_batch = [Tensor(inputs[rows]), Tensor(targets[rows]), Tensor(np.float32(targets.size))]
        times = {
            "step": median_ms(lambda: step(inputs[rows], targets[rows], targets.size), steps),
            "loss": median_ms(lambda: evaluator([(inputs, targets)]), steps),
            "loss and gradients": median_ms(lambda: gradients(*local_batch).asnumpy(), steps),
        }
    if mesh.devices > 1:
        times |= collectives(palm, mesh, shape, steps)
    return times


def collectives(palm, mesh, shape, steps):
    """Milliseconds of each kind of collective of a layer, by itself."""
    import numpy as np
    from mindspore import Tensor, ops
    from mindspore.communication import create_group

    from mindspore_palm.parallel.context import this_rank
    from mindspore_palm.parallel.weights import placement_of

    times = {}
    d_model, *_, length, batch = shape
    groups = {}
    for axis, size in mesh.sizes.items():
        if size > 1:
            members = mesh.group(this_rank(), [axis])
            groups[axis] = f"{axis}-{members[0]}"
            create_group(groups[axis], members)
    q_wi = placement_of(palm.block_weights(0)["q_wi"])
    if "data" in groups:
        shard = Tensor(np.ones(q_wi.shard_shape, np.float32))
        gathered = Tensor(np.ones((q_wi.shard_shape[0] * mesh.data, q_wi.shard_shape[1]), np.float32))
        gather, scatter = ops.AllGather(groups["data"]), ops.ReduceScatter(group=groups["data"])
        times["all-gather of q_wi"] = median_ms(lambda: gather(shard).asnumpy(), steps)
        times["reduce-scatter of q_wi"] = median_ms(lambda: scatter(gathered).asnumpy(), steps)
    if "model" in groups:
        activations = Tensor(np.ones((batch * length // mesh.data, d_model), np.float32))
        reduce = ops.AllReduce(group=groups["model"])
        times["all-reduce of activations"] = median_ms(lambda: reduce(activations).asnumpy(), steps)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meshes", nargs="+", default=MESHES, help="pods,data,model")
    parser.add_argument("--shape", type=int, default=0, help="number of a shape of benchmarks/train_step.py")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--results", metavar="FILE", help="(only for the workers that this starts)")
    arguments = parser.parse_args()
    if arguments.results:
        times = measure(tuple(map(int, arguments.meshes[0].split(","))), SHAPES[arguments.shape], arguments.steps)
        if os.environ.get("RANK_ID", "0") == "0" and os.environ.get("MS_ROLE") != "MS_SCHED":
            Path(arguments.results).write_text(json.dumps(times))
        return
    from mindspore_palm.launch.workers import Workers

    print("d_model, layers, heads, head_dim, vocab, length, batch:", ", ".join(map(str, SHAPES[arguments.shape])))
    for mesh in arguments.meshes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "results.json"
            options = ["--meshes", mesh, "--shape", arguments.shape, "--steps", arguments.steps, "--results", file]
            command = [__file__, *map(str, options)]
            devices = 1
            for size in mesh.split(","):
                devices *= int(size)
            if devices == 1:
                import subprocess

                subprocess.run([sys.executable, *command], check=True)
            else:
                Workers(devices, command, Path(folder) / "logs").join()
            times = json.loads(file.read_text())
        print(f"{mesh}: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in times.items()), flush=True)


if __name__ == "__main__":
    main()

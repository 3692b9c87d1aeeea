"""The training step compared with alternatives: the same shapes, Adam on all sides, alternating runs.

    pip install -r benchmarks/requirements.txt
    python benchmarks/train_step.py [--shapes 0,1,2,3,4,5] [--rounds 5] [--steps 5] [--json FILE]

Contenders are this package, the JAX reference of the tests under jit, and PaLM-pytorch, eager and under torch.compile.
Each runs in its own process, compiles and warms up. Then they take turns of a few steps, and of half a second at least,
so that a machine that slows down slows all of them. So does a matmul of 2048 x 2048, before and after each turn: its
fastest run is the peak that this turn is compared with. The output has the median step of each, the median of its
ratios by round, and its median share of the peak. ``benchmarks/page.py`` makes the table of docs/benchmarks.md of the
JSON.

All compute the full step in float32: forward, backward and Adam's update. This package also adds the z-loss and checks
that loss and gradients are finite, which PaLM-pytorch does not do. No side clips gradients.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from machine import MATMUL_FLOPS, MATMULS, matmul_step, measured_on  # noqa: E402 - found by the path above
from turns import Contender  # noqa: E402

SCALE = 1024.0  # of the loss, in float16
SHAPES = (  # d_model, layers, heads, head_dim, vocab, length, batch
    (128, 2, 4, 32, 512, 128, 8),
    (256, 4, 8, 32, 4096, 256, 8),
    (512, 6, 8, 64, 8192, 512, 4),
    (1024, 2, 8, 128, 8192, 1024, 1),
    (64, 2, 4, 16, 512, 64, 16),
    (768, 12, 12, 64, 32768, 512, 2),
)
TURN = 0.5  # seconds, at least: the first steps after a pause are slower


def model_config(shape):
    from mindspore_palm import PaLMConfig

    d_model, layers, heads, head_dim, vocab, _, _ = shape
    return PaLMConfig(
        layers=layers, d_model=d_model, heads=heads, head_dim=head_dim, d_ff=4 * d_model, vocab_size=vocab
    )


def tokens(shape):
    import numpy as np

    return np.random.default_rng(0).integers(0, shape[4], (2, shape[6], shape[5])).astype(np.int32)


def mindspore_step(shape, device="CPU", dtype="float32"):
    """``dtype`` may also be tf32: float32 with TF32 matmuls, on a GPU. float16 has them as well, as JAX has."""
    from mindspore_palm.parallel.axes import Layout, layout
    from mindspore_palm.parallel.context import open_device

    open_device(device, tf32=dtype != "float32")
    from mindspore_palm.config import OptimizerConfig
    from mindspore_palm.model.loss import Loss
    from mindspore_palm.model.palm import PaLM
    from mindspore_palm.optim import make_optimizer
    from mindspore_palm.train.step import TrainStep

    with layout(Layout(target=device, compute_dtype="float16" if dtype == "float16" else "float32")):
        palm = PaLM(model_config(shape))
        adam = OptimizerConfig(name="adamw", schedule="constant", learning_rate=1e-3)
        step = TrainStep(Loss(palm), make_optimizer(palm.trainable_params(), adam, 1), clip_norm=0.0)
    inputs, targets = tokens(shape)
    return lambda: step(inputs, targets, loss_scale=SCALE).loss


def jax_step(shape, platform="cpu", dtype="float32"):
    os.environ["JAX_PLATFORMS"] = platform
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the contenders share a GPU
    import jax
    import jax.numpy as jnp
    from reference import adafactor
    from reference import palm as reference

    d_model, layers, heads, head_dim, vocab, length, batch = shape
    sizes = reference.Shape(layers, d_model, heads, head_dim, 4 * d_model, vocab, vocab)
    key = jax.random.key(0)
    params = {
        name: 0.02 * jax.random.normal(jax.random.fold_in(key, i), size)
        for i, (name, size) in enumerate(reference.weight_shapes(sizes).items())
    }
    inputs, targets = (jnp.asarray(x) for x in tokens(shape))
    mask = jnp.ones((batch, length))

    def adam(p, g, m, v, k):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        return p - 1e-3 * (m / (1 - 0.9**k)) / (jnp.sqrt(v / (1 - 0.99**k)) + 1e-8), m, v

    def step(params, state, k):
        scale = SCALE if dtype == "float16" else 1.0
        objective = lambda p: scale * reference.loss(p, inputs, targets, mask, sizes, dtype=jnp.dtype(dtype))[0]  # noqa: E731
        value, grads = jax.value_and_grad(objective)(params)
        value, grads = value / scale, jax.tree.map(lambda g: g / scale, grads)
        new = {n: adam(params[n], grads[n], state["m"][n], state["v"][n], k) for n in params}
        return {n: new[n][0] for n in new}, {"m": {n: new[n][1] for n in new}, "v": {n: new[n][2] for n in new}}, value

    compiled = jax.jit(step, donate_argnums=(0, 1))
    state, k = adafactor.init(params), 0.0

    def run():
        nonlocal params, state, k
        k += 1.0
        params, state, value = compiled(params, state, k)
        jax.block_until_ready(params)
        return float(value)

    return run


def torch_step(shape, compiled, device="cpu", dtype="float32"):
    import torch
    from palm_pytorch import PaLM
    from torch.nn import functional

    from mindspore_palm.machine import processors

    d_model, layers, heads, head_dim, vocab, _, _ = shape
    torch.manual_seed(0)
    torch.set_num_threads(processors())
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    model = PaLM(dim=d_model, num_tokens=vocab, depth=layers, heads=heads, dim_head=head_dim).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True)
    inputs, targets = (torch.from_numpy(x).long().to(device) for x in tokens(shape))
    half = torch.autocast(device, torch.float16, enabled=dtype == "float16")
    scaler = torch.amp.GradScaler(device, init_scale=SCALE, enabled=dtype == "float16")
    objective = lambda: functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())  # noqa: E731
    if compiled:
        objective = torch.compile(objective)

    def run():
        adam.zero_grad(set_to_none=True)
        with half:
            loss = objective()
        scaler.scale(loss).backward()
        scaler.step(adam)
        scaler.update()
        return float(loss.detach())

    return run


CONTENDERS = {
    "mindspore_palm": mindspore_step,
    "jax": jax_step,
    "torch.compile": partial(torch_step, compiled=True),
    "torch eager": partial(torch_step, compiled=False),
}


def race(shape, names, rounds, steps):
    """Peak FLOP/s; for each contender median ms/step, median ratio to the first, and median share of the peak."""
    contenders = {name: Contender(CONTENDERS[name], shape).wait() for name in names}
    matmul = Contender(matmul_step).wait()
    times, peaks = {name: [] for name in names}, {name: [] for name in names}
    turns = {name: max(steps, math.ceil(TURN / min(one.steps(2)))) for name, one in contenders.items()}
    for _ in range(rounds):
        before = matmul.steps(MATMULS)
        for name, contender in contenders.items():
            times[name].append(statistics.median(contender.steps(turns[name])))
            after = matmul.steps(MATMULS)
            peaks[name].append(MATMUL_FLOPS / min(before + after))
            before = after
    for contender in (matmul, *contenders.values()):
        contender.close()
    first = times[names[0]]
    flops = model_config(shape).flops_per_token(shape[5]) * shape[5] * shape[6]
    figures = {
        name: {
            "ms": 1e3 * statistics.median(times[name]),
            "times_ours": statistics.median(own / base for own, base in zip(times[name], first, strict=True)),
            "of_peak": statistics.median(flops / t / peak for t, peak in zip(times[name], peaks[name], strict=True)),
        }
        for name in names
    }
    return statistics.median(peak for one in peaks.values() for peak in one), figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="0,1,2,3,4,5", help="numbers of the shapes")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="the others are compared with the first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="steps per turn, at least")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    names = arguments.contenders.split(",")
    print("d_model, layers, heads, head_dim, vocab, length, batch: contender, ms/step, time over the first, of peak")
    results = {**measured_on(), "rounds": arguments.rounds, "steps": arguments.steps, "shapes": []}
    for index in arguments.shapes.split(","):
        shape = SHAPES[int(index)]
        peak, rows = race(shape, names, arguments.rounds, arguments.steps)
        results["shapes"].append({"shape": shape, "peak_gflops": peak / 1e9, "figures": rows})
        print(f"{', '.join(str(size) for size in shape)}; peak {peak / 1e9:.1f} GFLOP/s", flush=True)
        for name, row in rows.items():
            print(f"  {name:<16}{row['ms']:9.1f} ms{row['times_ours']:8.2f}x{row['of_peak']:8.1%}", flush=True)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")
    for name in names[1:]:
        ratios = [one["figures"][name]["times_ours"] for one in results["shapes"]]
        print(f"geometric mean of {name}: {statistics.geometric_mean(ratios):.2f}x, least {min(ratios):.2f}x")


if __name__ == "__main__":
    main()

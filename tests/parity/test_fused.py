"""The C++ functions of a training step, against MindSpore's own ops and against JAX; and where they are not used.

The other tests of this folder take C++ where a layout has it, or with MINDSPORE_PALM_FUSED=0 MindSpore's ops.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, mutable, nn, ops
from parity.twins import EVEN, ODD, randomise_scales, reference_loss, relative, tokens, weights_of
from reference import adafactor, adamw, compiled

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.config import OptimizerConfig
from mindspore_palm.model.block import Block
from mindspore_palm.model.factory import make_attention, make_block
from mindspore_palm.model.fused import FusedBlock, FusedUnembedLoss
from mindspore_palm.model.loss import Loss, UnembedLoss, make_unembed_loss
from mindspore_palm.optim import make_optimizer
from mindspore_palm.optim.fused import FusedUpdate
from mindspore_palm.parallel import fused
from mindspore_palm.parallel.axes import Layout, layout
from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.train.evaluate import SummedCrossEntropy
from mindspore_palm.train.step import TrainStep, Update, make_update

TOLERANCE = 2e-6  # both sides round each of some hundred sums to 6e-8; measured 3e-7
PATHS = {"C++": "1", "MindSpore": "0"}


@pytest.fixture(autouse=True)
def in_cpp(monkeypatch):
    monkeypatch.delenv(fused.SWITCH, raising=False)


@pytest.fixture(params=PATHS)
def path(request, monkeypatch, device):
    assert fused.library() is not None, "the tests want g++"
    monkeypatch.setenv(fused.SWITCH, PATHS[request.param])
    return request.param


class Projected(nn.Cell):
    """The sum of a Cell's first results, each times a given tensor: its gradients test all of the Cell's."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.cell, self.sum = cell, ops.ReduceSum()

    def construct(self, x, other, *directions):
        results = self.cell(x, other)
        if not isinstance(results, tuple):
            results = (results,)
        total = 0.0
        for i in range(len(directions)):
            total = total + self.sum(results[i] * directions[i])
        return total


def results_and_gradients(cell, x, other, directions, weights=()):
    """The Cell's results, then gradients of x and of the weights."""
    results = cell(x, other)
    results = results if isinstance(results, tuple) else (results,)
    gradient = ms.grad(Projected(cell), 0, ParameterTuple(weights) if weights else None)(x, other, *directions)
    of_x, of_weights = gradient if weights else (gradient, ())
    return [t.asnumpy() for t in (*results, of_x, *of_weights)]


@pytest.mark.parametrize(
    "sizes",
    [
        (36, 3, 8, 144, 37, 3, {}),  # nothing is a multiple of a tile
        (64, 4, 16, 256, 64, 2, {"norm_scale": "around_one", "norm_epsilon": 1e-3}),
        (32, 2, 128, 64, 200, 1, {"xpos_base": 64.0}),
        (300, 1, 20, 12, 1, 5, {}),  # sequences of one token, sums of more than 256 terms
    ],
    ids=["odd", "even", "wide heads", "short"],
)
def test_a_block_and_its_gradients_are_those_of_mindspores_ops(device, rng, sizes):
    d_model, heads, head_dim, d_ff, length, batch, switches = sizes
    config = PaLMConfig(layers=1, d_model=d_model, heads=heads, head_dim=head_dim, d_ff=d_ff, vocab_size=8, **switches)
    palm = PaLM(config)
    randomise_scales(palm, rng)
    x, direction = (Tensor(rng.standard_normal((batch * length, d_model)).astype(np.float32)) for _ in range(2))
    found = []
    for kind in (Block, FusedBlock):
        block = kind(config, palm.block_weights(0), make_attention(config))
        found.append(results_and_gradients(block, x, batch, [direction], list(palm.block_weights(0).values())))
    for ours, expected in zip(*found[::-1], strict=True):
        assert relative(ours, expected) < TOLERANCE


UNEMBEDS = {
    "odd": {"d_model": 37, "vocab_size": 61, "vocab_multiple": 8},  # nothing is a multiple of a tile
    "large logits": {"d_model": 32, "vocab_size": 64, "scaled_logits": False},
    "layer norm": {"d_model": 24, "vocab_size": 50, "norm": "layer_norm", "norm_scale": "around_one"},
    "no scale": {"d_model": 300, "vocab_size": 17, "final_norm_scale": False, "norm_epsilon": 1e-3},
    "parts": {"d_model": 16, "vocab_size": 9000, "vocab_multiple": 16},  # of the table; sums over 4,096 rows and more
}


@pytest.mark.parametrize("sizes", UNEMBEDS.values(), ids=UNEMBEDS)
def test_the_logits_loss_and_its_gradients_are_those_of_mindspores_ops(device, rng, sizes):
    config = PaLMConfig(layers=1, heads=1, head_dim=4, d_ff=4, **sizes)
    palm = PaLM(config)
    randomise_scales(palm, rng)
    draw = lambda *shape: Tensor(rng.standard_normal(shape).astype(np.float32))  # noqa: E731
    palm.embedding.set_data(draw(config.padded_vocab, config.d_model))
    x, directions, targets = draw(40, config.d_model), [draw(40), draw(40)], rng.integers(0, config.vocab_size, 40)
    targets[3:6] = -1
    norm = palm.unembed.norm
    weights = [palm.embedding] + ([norm.scale] if norm.has_scale else [])
    cells = UnembedLoss(palm), make_unembed_loss(palm)
    assert isinstance(cells[1], FusedUnembedLoss)
    results = [
        results_and_gradients(WithTable(cell, palm.embedding), x, Tensor(targets.astype(np.int32)), directions, weights)
        for cell in cells
    ]
    for ours, expected in zip(*results[::-1], strict=True):
        assert relative(ours, expected) < TOLERANCE
    cross_entropy, log_z, of_x, of_table, *_ = results[1]
    assert not cross_entropy[3:6].any() and not log_z[3:6].any() and not of_x[3:6].any()
    assert not of_table[config.vocab_size :].any()


class WithTable(nn.Cell):
    """A loss of the residual stream and targets, with its table."""

    def __init__(self, loss: nn.Cell, table: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.loss, self.table = loss, table

    def construct(self, x, targets):
        return self.loss(x, self.table, targets)


@pytest.mark.parametrize(("sizes", "length"), [(ODD, 19), (EVEN, 128)], ids=["odd", "even"])
def test_loss_and_every_gradient_are_those_of_jax_on_both_paths(path, rng, sizes, length):
    palm = PaLM(PaLMConfig(**sizes), seed=3)
    randomise_scales(palm, rng)
    loss = Loss(palm)
    assert isinstance(palm.blocks[0], FusedBlock) == isinstance(loss.unembed_loss, FusedUnembedLoss) == (path == "C++")
    weights = weights_of(palm)
    inputs, targets = tokens(rng, palm.config, 3, length)
    count = Tensor(np.float32((targets >= 0).sum()))
    (ours, _), gradients = ms.value_and_grad(loss, None, palm.trainable_params(), has_aux=True)(
        Tensor(inputs), Tensor(targets), count
    )
    in_jax = jax.value_and_grad(lambda w: reference_loss(w, inputs, targets, palm.config), has_aux=True)
    (theirs, _), expected = compiled(in_jax)(weights)
    assert float(ours) == pytest.approx(float(theirs), rel=TOLERANCE)
    for parameter, gradient in zip(palm.trainable_params(), gradients, strict=True):
        assert relative(gradient.asnumpy(), expected[parameter.name]) < 5e-6, parameter.name


SHAPES = {"embedding": (50, 16), "blocks.0.norm.scale": (16,), "blocks.0.q_wi": (400, 72), "blocks.0.kv": (16, 8)}
OPTIMIZERS = {
    "adafactor": {"name": "adafactor"},
    "adafactor without its clips": {"name": "adafactor", "update_clip": 0.0, "lr_squared_decay": False},
    "adamw": {"name": "adamw", "schedule": "cosine", "warmup_steps": 3, "adamw_weight_decay": 0.1},
}


def updater(start, settings, kind, clip):
    parameters = [Parameter(Tensor(value), name=name) for name, value in start.items()]
    optimizer = make_optimizer(parameters, OptimizerConfig(**settings), steps=20)
    return parameters, optimizer, kind(optimizer, clip)


@pytest.mark.parametrize("clip", [1.0, 0.0])
@pytest.mark.parametrize("settings", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_update_is_that_of_mindspores_ops(device, rng, settings, clip):
    start = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    sides = [updater(start, settings, kind, clip) for kind in (FusedUpdate, Update)]
    for _ in range(8):
        grads = [(10.0 ** rng.uniform(-4, 1) * rng.standard_normal(s)).astype(np.float32) for s in SHAPES.values()]
        results = [u(Tensor(np.float32(1.0)), mutable(tuple(Tensor(g) for g in grads))) for _, _, u in sides]
        for ours, expected in zip(*results, strict=True):
            assert float(ours) == pytest.approx(float(expected), rel=1e-6)
        for moment in ("m", "v"):
            for ours, expected in zip(*(getattr(o, moment) for _, o, _ in sides), strict=True):
                assert relative(ours.asnumpy(), expected.asnumpy()) < TOLERANCE
        for ours, expected in zip(*(parameters for parameters, _, _ in sides), strict=True):
            assert relative(ours.asnumpy(), expected.asnumpy()) < TOLERANCE
    assert [int(o.global_step.asnumpy()[0]) for _, o, _ in sides] == [8, 8]


@pytest.mark.parametrize("twin", [adafactor, adamw], ids=["adafactor", "adamw"])
def test_an_update_is_that_of_jax(device, rng, twin):
    name = twin.__name__.rpartition(".")[2]
    settings, words = ({"adamw_weight_decay": 0.1}, {"decay": 0.1}) if twin is adamw else ({}, {})
    start = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    parameters, _, update = updater(start, {"name": name, **settings}, FusedUpdate, 1.0)
    params = {n: jnp.asarray(v) for n, v in start.items()}
    state, in_jax = twin.init(params), compiled(partial(twin.update, **words))
    for k in range(1, 9):
        grads = {n: (10.0 ** rng.uniform(-4, 1) * rng.standard_normal(s)).astype(np.float32) for n, s in SHAPES.items()}
        update(Tensor(np.float32(1.0)), mutable(tuple(Tensor(g) for g in grads.values())))
        params, state, *_ = in_jax(params, grads, state, k)
        for parameter in parameters:
            assert relative(parameter.asnumpy(), params[parameter.name]) < TOLERANCE, (k, parameter.name)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_an_update_that_is_not_finite_changes_nothing(device, rng, poison):
    start = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    _, optimizer, update = updater(start, {"name": "adamw"}, FusedUpdate, 1.0)
    grads = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES.values()]
    update(Tensor(np.float32(1.0)), mutable(tuple(map(Tensor, grads))))
    state = [*optimizer.parameters, *optimizer.m, *optimizer.v, optimizer.global_step]
    before = [p.asnumpy().copy() for p in state]
    if poison == "gradient":
        grads[2][399, 71] = np.nan
    loss = Tensor(np.float32(np.inf if poison == "loss" else 1.0))
    norm, rate, applied = update(loss, mutable(tuple(map(Tensor, grads))))
    assert not bool(applied) and float(rate) == 0 and np.isfinite(float(norm)) == (poison == "loss")
    for a, b in zip(before, state, strict=True):
        np.testing.assert_array_equal(a, b.asnumpy())


def trainer(seed=1, name="adafactor"):
    palm = PaLM(PaLMConfig(**EVEN), seed=seed)
    config = OptimizerConfig(name=name, schedule="constant", learning_rate=0.003)
    return TrainStep(Loss(palm), make_optimizer(palm.trainable_params(), config, 10), clip_norm=1.0)


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_a_run_on_one_path_goes_on_on_the_other(device, rng, monkeypatch, name):
    """Losses within 1e-5 of those of a run that stays; on one path, a run that goes on has the same bits."""
    batches = [tokens(rng, PaLMConfig(**EVEN), 4, 64) for _ in range(6)]

    def run(first, second):
        monkeypatch.setenv(fused.SWITCH, PATHS[first])
        step = trainer(name=name)
        losses = [step(*batch).loss for batch in batches[:3]]
        monkeypatch.setenv(fused.SWITCH, PATHS[second])
        resumed = trainer(seed=2, name=name)
        for to, parameter in zip(resumed.state, step.state, strict=True):
            assert to.name == parameter.name
            to.set_data(Tensor(parameter.asnumpy()))
        return losses + [resumed(*batch).loss for batch in batches[3:]]

    stays = run("C++", "C++")
    assert stays == run("C++", "C++")
    for first, second in (("C++", "MindSpore"), ("MindSpore", "C++")):
        np.testing.assert_allclose(run(first, second), stays, rtol=1e-5)


BITS = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
import hashlib
import numpy as np
from mindspore import Tensor
from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.parallel import fused
from parity.test_fused import SHAPES, WithTable, make_unembed_loss, results_and_gradients, updater, FusedUpdate, mutable
palm = PaLM(PaLMConfig(layers=1, d_model=48, heads=3, head_dim=16, d_ff=96, vocab_size=500))
rng = np.random.default_rng(0)
draw = lambda *shape: Tensor(rng.standard_normal(shape).astype(np.float32))
found = results_and_gradients(palm.blocks[0], draw(150, 48), 3, [draw(150, 48)], list(palm.block_weights(0).values()))
head, targets = WithTable(make_unembed_loss(palm), palm.embedding), Tensor(rng.integers(0, 500, 150).astype(np.int32))
found += results_and_gradients(head, draw(150, 48), targets, [draw(150), draw(150)], [palm.embedding])
start = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
parameters, _, update = updater(start, {"name": "adafactor"}, FusedUpdate, 1.0)
update(Tensor(np.float32(1.0)), mutable(tuple(draw(*shape) for shape in SHAPES.values())))
print("bits", hashlib.sha256(b"".join(a.tobytes() for a in (*found, *(p.asnumpy() for p in parameters)))).hexdigest())
"""


def test_the_number_of_threads_changes_no_bit():
    assert len(os.sched_getaffinity(0)) > 1 or pytest.skip("there is one processor")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", "."])}
    found = []
    for threads in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", BITS, threads], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        found.append([line for line in done.stdout.splitlines() if line.startswith("bits")])
    assert len(found[0]) == 1 and found[0] == found[1]


@pytest.mark.parametrize(
    "change",
    [
        {"compute_dtype": "float16"},
        {"target": "GPU"},
        {"mesh": Mesh(data=2)},
        {"planned": True},
        {"recompute": "block"},
        {"recompute": "attention"},
    ],
    ids=str,
)
def test_other_layouts_have_mindspores_ops(device, change):
    assert fused.usable()
    with layout(dataclasses.replace(Layout(), **change)):
        assert not fused.usable()


def test_ablations_have_mindspores_blocks(device):
    for switches in ({"mlp": "gelu"}, {"norm": "layer_norm"}, {"position": "alibi"}, {"attention": "multi_head"}):
        assert not isinstance(PaLM(PaLMConfig(**EVEN, **switches)).blocks[0], FusedBlock), switches


def test_a_portable_network_has_mindspores_ops(device):
    with fused.portable():
        assert not isinstance(PaLM(PaLMConfig(**EVEN)).blocks[0], FusedBlock)
    assert isinstance(PaLM(PaLMConfig(**EVEN)).blocks[0], FusedBlock)


def test_without_a_compiler_mindspores_ops_compute_the_step(device, rng, monkeypatch, tmp_path):
    expected = trainer()(*tokens(np.random.default_rng(5), PaLMConfig(**EVEN), 4, 64))
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("MINDSPORE_PALM_CACHE", str(tmp_path))
    fused.library.cache_clear()
    try:
        assert fused.wanted() and not fused.usable()
        palm = PaLM(PaLMConfig(**EVEN))
        assert type(palm.blocks[0]) is Block and type(make_unembed_loss(palm)) is UnembedLoss
        assert type(make_update(make_optimizer(palm.trainable_params(), OptimizerConfig(), 2), 1.0)) is Update
        found = trainer()(*tokens(np.random.default_rng(5), PaLMConfig(**EVEN), 4, 64))
    finally:
        fused.library.cache_clear()
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)


def test_an_evaluation_takes_the_loss_in_cpp(device, rng, monkeypatch):
    """MindSpore's ops would keep tables of four times the logits for it."""
    config = PaLMConfig(**EVEN)
    inputs, targets, nats = *tokens(rng, config, 4, 64), {}
    for path, kind in (("C++", FusedUnembedLoss), ("MindSpore", UnembedLoss)):
        monkeypatch.setenv(fused.SWITCH, PATHS[path])
        network = SummedCrossEntropy(PaLM(config, seed=3))
        assert type(network.unembed_loss) is kind
        nats[path] = float(network(Tensor(inputs), Tensor(targets)).asnumpy())
    assert nats["C++"] == pytest.approx(nats["MindSpore"], rel=TOLERANCE)


def test_a_decoder_has_blocks_of_its_own(device):
    """Its attention is to a cache; the library of decoding has its C++."""
    palm = PaLM(PaLMConfig(**EVEN))
    block = make_block(palm.config, palm.block_weights(0), make_attention(palm.config))
    assert type(block) is Block

"""Variants of the optimizers, their declarations, schedules, and clipping."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from mindspore import Parameter, Tensor, mutable, nn
from parallel.suite import QUICK, SLOW
from reference.mesh import OPTIMIZERS as IN_JAX

from mindspore_palm.config import OptimizerConfig, ReadBy
from mindspore_palm.optim import OPTIMIZERS, GlobalNorm, Schedule, clip_factor, make_optimizer, optimizer_class


class NormAndFactor(nn.Cell):
    def __init__(self, parameters):
        super().__init__()
        self.norm = GlobalNorm(parameters)

    def construct(self, clip_norm, *gradients):
        norm = self.norm(gradients)
        return norm, clip_factor(norm, clip_norm)


def steps_of(config: OptimizerConfig, start: dict, gradients: list[dict]) -> dict[str, np.ndarray]:
    parameters = [Parameter(Tensor(value), name=name) for name, value in start.items()]
    optimizer = make_optimizer(parameters, config, len(gradients))
    for grads in gradients:
        optimizer(mutable(tuple(Tensor(grads[name]) for name in start)))
    return {p.name: p.asnumpy() for p in parameters}


@pytest.fixture
def problem(rng):
    start = {"kernel": rng.standard_normal((6, 10)), "norm.scale": rng.standard_normal(10)}
    gradients = [{n: rng.standard_normal(v.shape).astype(np.float32) for n, v in start.items()} for _ in range(6)]
    return {n: v.astype(np.float32) for n, v in start.items()}, gradients


def test_factored_adafactor(device, problem):
    """Shazeer and Stern (arXiv 1804.04235), algorithm 4, with PaLM's momentum and decay, in float64."""
    start, gradients = problem
    got = steps_of(OptimizerConfig(factored=True), start, gradients)
    rms = lambda x: math.sqrt((x * x).mean())  # noqa: E731
    for name, p in start.items():
        p, m, v = p.astype(np.float64), 0.0, 0.0
        row = column = 0.0
        for k, grads in enumerate(gradients, 1):
            g, b = grads[name].astype(np.float64), 1 - k**-0.8
            square = g * g + 1e-30
            if p.ndim == 2:
                row, column = b * row + (1 - b) * square.mean(1), b * column + (1 - b) * square.mean(0)
                v = np.outer(row, column) / row.mean()
            else:
                v = b * v + (1 - b) * square
            u = g / np.sqrt(v)
            u /= max(1.0, rms(u))
            m = 0.9 * m + 0.1 * (0.01 * max(1e-3, rms(p)) * u)
            p = (1 - 0.01**2) * p - m
        np.testing.assert_allclose(got[name], p, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("setting", [{"update_clip": 0.0}, {"lr_squared_decay": False}, {"factored": True}])
def test_each_setting_of_adafactor_matters(device, problem, setting):
    start, gradients = problem
    for grads in gradients[1:]:
        grads["kernel"] *= np.float32(30.0)  # larger than the first: updates are clipped
    default, changed = (steps_of(OptimizerConfig(**s), start, gradients) for s in ({}, setting))
    assert np.abs(default["kernel"] - changed["kernel"]).max() > 1e-5


def test_adamw(device, problem):
    """Loshchilov and Hutter (arXiv 1711.05101), algorithm 2, in float64; norm scales are not decayed."""
    start, gradients = problem
    config = OptimizerConfig(name="adamw", schedule="constant", learning_rate=0.02, adamw_weight_decay=0.1)
    got = steps_of(config, start, gradients)
    for name, p in start.items():
        p, m, v = p.astype(np.float64), 0.0, 0.0
        for k, grads in enumerate(gradients, 1):
            g = grads[name].astype(np.float64)
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
            p = p * (1 - 0.02 * 0.1) if p.ndim == 2 else p
            p = p - 0.02 * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.99**k)) + 1e-8)
        np.testing.assert_allclose(got[name], p, rtol=1e-5, atol=1e-6)


def test_lion(device, problem):
    """Chen and others (arXiv 2302.06675), algorithm 2, in float64; norm scales do not decay."""
    start, gradients = problem
    config = OptimizerConfig(name="lion", schedule="constant", learning_rate=0.02, lion_weight_decay=0.1)
    got = steps_of(config, start, gradients)
    for name, p in start.items():
        p, m = p.astype(np.float64), 0.0
        for grads in gradients:
            g = grads[name].astype(np.float64)
            decay = 0.1 * p if p.ndim == 2 else 0.0
            p = p - 0.02 * (np.sign(0.9 * m + 0.1 * g) + decay)
            m = 0.99 * m + 0.01 * g
        np.testing.assert_allclose(got[name], p, rtol=1e-5, atol=1e-6)


EVERY = [*({"name": name} for name in OPTIMIZERS), {"factored": True}]


def test_every_name_of_the_setting_is_registered():
    names = get_args(OptimizerConfig.model_fields["name"].annotation)
    assert set(OPTIMIZERS) == set(names)


def test_every_optimizer_has_a_twin_in_jax_and_is_trained_on_meshes():
    assert set(IN_JAX) == set(OPTIMIZERS)
    assert {case.optimizer for case in [*QUICK, *SLOW]} == set(OPTIMIZERS)


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_an_optimizer_has_the_moments_that_it_declares(device, settings):
    """Memory and checkpoints go by the declaration."""
    config, shapes = OptimizerConfig(**settings), {"kernel": (6, 10), "norm.scale": (10,)}
    parameters = [Parameter(Tensor(np.ones(shape, np.float32)), name=name) for name, shape in shapes.items()]
    optimizer, rule = make_optimizer(parameters, config, 10), optimizer_class(config)
    own = {p.name: p for p in optimizer.get_parameters() if p.ndim and p.name not in (*shapes, "global_step")}
    declared = {
        f"{moment}.{name}": size for name, shape in shapes.items() for moment, size in rule.moments(shape).items()
    }
    assert {name: tuple(p.shape) for name, p in own.items()} == declared
    assert sum(map(rule.state_bytes, shapes.values())) == sum(4 * p.size for p in own.values())


class Recorder:
    """Settings that record which of them are read."""

    def __init__(self, config: OptimizerConfig) -> None:
        self.config, self.read = config, set()

    def __getattr__(self, name: str):
        self.read.add(name)
        return getattr(self.config, name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_reads_the_settings_that_are_marked_as_its_own(device, name):
    """The notes about settings without effect go by the marks."""
    config = OptimizerConfig(name=name)
    marked = {
        setting
        for setting, field in OptimizerConfig.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, ReadBy) and mark.optimizer == name
    }
    recorder = Recorder(config)
    OPTIMIZERS[name].variant(recorder)([Parameter(Tensor(np.ones((2, 3), np.float32)), name="kernel")], recorder, None)
    assert recorder.read == marked


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {1: 0.01, 9_999: 0.01, 10_000: 0.01, 40_000: 0.005, 1_000_000: 0.001}),
        ({"schedule": "constant", "learning_rate": 0.3, "warmup_steps": 10}, {1: 0.03, 5: 0.15, 10: 0.3, 900: 0.3}),
        (
            {"schedule": "cosine", "learning_rate": 0.2, "warmup_steps": 100, "final_fraction": 0.1},
            {50: 0.1, 100: 0.2, 550: 0.11, 1000: 0.02},
        ),
    ],
)
def test_schedules(device, config, expected):
    schedule = Schedule(OptimizerConfig(**config), steps=1000)
    for k, rate in expected.items():
        assert float(schedule(Tensor(np.float32(k)))) == pytest.approx(rate, rel=1e-5), k


def test_global_norm_and_clip(device, rng):
    gradients = [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 5), (7,), (2, 2))]
    both = NormAndFactor([Parameter(Tensor(g), name=f"p{i}") for i, g in enumerate(gradients)])
    exact = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients))
    for clip_norm, factor in ((0.5, 0.5 / exact), (100.0, 1.0)):
        norm, got = both(clip_norm, *(Tensor(g) for g in gradients))
        assert float(norm) == pytest.approx(exact, rel=1e-6)
        assert float(got) == pytest.approx(factor, rel=1e-6)

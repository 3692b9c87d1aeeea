"""Adafactor tensor by tensor, and a whole training curve, against JAX."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mindspore import Parameter, Tensor, mutable
from parity.twins import ODD, reference_loss, relative, tokens, weights_of
from reference import adafactor as reference
from reference import adamw, compiled, lion

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.config import OptimizerConfig
from mindspore_palm.model.loss import Loss
from mindspore_palm.optim import make_optimizer
from mindspore_palm.train.step import TrainStep, Update


def gradients_of(arrays):
    """As a tuple that is no constant of the graph, which would be compiled again at every step."""
    return mutable(tuple(Tensor(array) for array in arrays.values()))


def test_twenty_steps_of_adafactor_from_the_same_gradients(device, rng):
    """1e-6 in norm for every weight, v and m after each step: 20 roundings of 6e-8, measured 3e-7.

    Both sides get the same gradients. Adafactor's first step is nearly a sign, so with nearly equal gradients, signs
    would differ where a gradient is noise around zero.
    """
    shapes = {"embedding": (50, 16), "blocks.0.norm.scale": (16,), "blocks.0.q_wi": (16, 72), "blocks.0.kv": (16, 8)}
    start = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    start["blocks.0.norm.scale"][:] = 0.0  # below the smallest scale
    parameters = [Parameter(Tensor(value), name=name) for name, value in start.items()]
    optimizer = make_optimizer(parameters, OptimizerConfig(), steps=20)
    update = Update(optimizer, clip_norm=1.0)
    params, state = {n: jnp.asarray(v) for n, v in start.items()}, None
    state, in_jax = reference.init(params), compiled(reference.update)
    for k in range(1, 21):
        spread = 10.0 ** rng.uniform(-4, 1)  # some steps are clipped, some are not
        grads = {n: (spread * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}
        norm, rate, finite = update(Tensor(np.float32(1.0)), gradients_of(grads))
        params, state, expected_norm = in_jax(params, grads, state, k)
        assert bool(finite) and float(rate) == pytest.approx(0.01)
        assert float(norm) == pytest.approx(float(expected_norm), rel=1e-6)
        for i, name in enumerate(shapes):
            assert relative(parameters[i].asnumpy(), params[name]) < 1e-6, (k, name)
            assert relative(optimizer.v[i].asnumpy(), state["v"][name]) < 1e-6, (k, name)
            assert relative(optimizer.m[i].asnumpy(), state["m"][name]) < 1e-6, (k, name)


@pytest.mark.parametrize(
    ("name", "twin", "settings"),
    [
        ("adamw", adamw, {"adamw_weight_decay": 0.1}),
        ("lion", lion, {"lion_weight_decay": 0.1}),
        ("lion", lion, {"lion_weight_decay": 0.1, "lion_beta1": 0.8, "lion_beta2": 0.95}),
    ],
    ids=["adamw", "lion", "lion with other betas"],
)
def test_twenty_steps_of_the_others_from_the_same_gradients(device, rng, name, twin, settings):
    """1e-6 in norm for every weight and moment after each step, as for Adafactor."""
    shapes = {"embedding": (50, 16), "blocks.0.norm.scale": (16,), "blocks.0.q_wi": (16, 72), "blocks.0.kv": (16, 8)}
    start = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    parameters = [Parameter(Tensor(value), name=n) for n, value in start.items()]
    optimizer = make_optimizer(parameters, OptimizerConfig(name=name, learning_rate=1e-3, **settings), steps=20)
    update = Update(optimizer, clip_norm=1.0)
    params = {n: jnp.asarray(v) for n, v in start.items()}
    state = twin.init(params)
    words = {key.removeprefix(f"{name}_").removeprefix("weight_"): value for key, value in settings.items()}
    in_jax = compiled(partial(twin.update, peak=1e-3, **words))
    for k in range(1, 21):
        spread = 10.0 ** rng.uniform(-4, 1)  # some steps are clipped, some are not
        grads = {n: (spread * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}
        norm, rate, finite = update(Tensor(np.float32(1.0)), gradients_of(grads))
        params, state, expected_norm = in_jax(params, grads, state, k)
        assert bool(finite) and float(rate) == pytest.approx(1e-3)
        assert float(norm) == pytest.approx(float(expected_norm), rel=1e-6)
        for i, weight in enumerate(shapes):
            assert relative(parameters[i].asnumpy(), params[weight]) < 1e-6, (k, weight)
            for moment, values in state.items():
                assert relative(getattr(optimizer, moment)[i].asnumpy(), values[weight]) < 1e-6, (k, moment, weight)


def test_fifty_steps_of_training_follow_the_same_curve(device, rng):
    """Each side on its own gradients: losses to 1e-5 over 50 steps, while the loss falls by more than a nat."""
    config = PaLMConfig(**ODD)
    palm = PaLM(config, seed=5)
    weights = weights_of(palm)
    state = reference.init(weights)
    step = TrainStep(Loss(palm), make_optimizer(palm.trainable_params(), OptimizerConfig(), 50), clip_norm=1.0)
    batches = [tokens(rng, config, 4, 16) for _ in range(2)]

    @compiled
    def train(weights, state, inputs, targets, k):
        objective = lambda w: reference_loss(w, inputs, targets, config)  # noqa: E731
        (loss, _), grads = jax.value_and_grad(objective, has_aux=True)(weights)
        return *reference.update(weights, grads, state, k), loss

    losses = []
    for k in range(1, 51):
        inputs, targets = batches[k % 2]
        result = step(inputs, targets)
        weights, state, norm, loss = train(weights, state, inputs, targets, k)
        assert result.loss == pytest.approx(float(loss), rel=1e-5), k
        assert result.gradient_norm == pytest.approx(float(norm), rel=1e-3), k
        losses.append(result.loss)
    assert losses[-1] < losses[0] - 1.0

"""float16 and its loss scale against JAX: gradients, what is lost without a scale, and a training curve."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mindspore import Tensor, ops
from parity.twins import EVEN, relative, shape_of, tokens, weights_of
from reference import adamw, compiled
from reference import palm as reference

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.config import OptimizerConfig
from mindspore_palm.model.loss import Loss
from mindspore_palm.optim import make_optimizer
from mindspore_palm.parallel.axes import Layout, layout
from mindspore_palm.train.step import Objective, TrainStep

CONFIG = PaLMConfig(**EVEN)
PALM_TOKENS = 2048 * 2048  # of a step of PaLM 540B: the loss is divided by them before the backward pass
SCALE = 65536.0 * 2**10
HALF = Layout(compute_dtype="float16")


def gradients(palm, inputs, targets, count, *scale) -> dict[str, np.ndarray]:
    """Of all weights, for a batch that is part of a step of ``count`` tokens; the scale is taken out again."""
    parameters = palm.trainable_params()
    function = ops.value_and_grad(Objective(Loss(palm)), None, tuple(parameters), has_aux=True)
    arrays = (Tensor(np.float32(s)) for s in scale)
    _, found = function(Tensor(inputs), Tensor(targets), Tensor(np.float32(count)), *arrays)
    return {p.name: g.asnumpy() / (scale or (1.0,))[0] for p, g in zip(parameters, found, strict=True)}


@partial(compiled, static_argnames="dtype")
def in_jax(weights, inputs, targets, count, scale, dtype):
    """The loss, and the gradients of ``gradients``."""
    mask = jnp.asarray(targets >= 0, jnp.float32)

    def objective(w):
        mean = reference.loss(w, inputs, jnp.maximum(targets, 0), mask, shape_of(CONFIG), dtype=dtype)[0]
        return mean * mask.sum() / count * scale, mean

    found, mean = jax.grad(objective, has_aux=True)(weights)
    return mean, {name: gradient / scale for name, gradient in found.items()}


@pytest.fixture(scope="module")
def batch():
    return tokens(np.random.default_rng(1), CONFIG, 2, 16)


@pytest.fixture(scope="module")
def found(device, batch):
    """Gradients in float32, and in float16 with and without a scale, for a step of PaLM's size."""
    exact = gradients(PaLM(CONFIG, seed=2), *batch, PALM_TOKENS)
    with layout(HALF):
        palm = PaLM(CONFIG, seed=2)
        return exact, gradients(palm, *batch, PALM_TOKENS, 1.0), gradients(palm, *batch, PALM_TOKENS, SCALE)


def test_gradients_of_a_large_step_vanish_without_a_scale_and_not_with_one(found):
    """float16 rounds to zero below 6e-8, and the largest gradients of this step are near 1e-7."""
    exact, lost, kept = found
    for name in (n for n in exact if n.endswith("q_wi")):
        assert relative(lost[name], exact[name]) > 0.5, name
        assert (lost[name] == 0).mean() > 0.25, name
        assert relative(kept[name], exact[name]) < 4e-3, name  # 2^-11 for each rounding


def test_scaled_gradients_are_those_of_jax_in_float16(found, batch):
    """The same roundings in other places: as far from each other as each is from float32."""
    weights = weights_of(PaLM(CONFIG, seed=2))
    _, expected = in_jax(weights, *batch, PALM_TOKENS, SCALE, jnp.float16)
    for name, gradient in found[2].items():
        assert relative(gradient, expected[name]) < 4e-3, name


def curve(dtype: str, scale: float, batches) -> list[float]:
    """Losses of a training whose batches are part of steps of PaLM's size, per token of the batch."""
    with layout(Layout(compute_dtype=dtype)):
        palm = PaLM(CONFIG, seed=2)
        optimizer = make_optimizer(palm.trainable_params(), OptimizerConfig(name="adamw", learning_rate=3e-3), 30)
        step = TrainStep(Loss(palm), optimizer, clip_norm=0.0)
        results = [step(*batch, tokens=PALM_TOKENS, loss_scale=scale) for batch in batches]
    assert not any(result.skipped for result in results)
    return [
        result.loss * PALM_TOKENS / (targets >= 0).sum() for result, (_, targets) in zip(results, batches, strict=True)
    ]


def test_training_stalls_without_a_scale_and_follows_float32_with_one(device, rng):
    """AdamW is blind to the size of a gradient: a tiny one trains as well as a large one, unless it is rounded away."""
    batches = [tokens(rng, CONFIG, 2, 16)] * 30
    exact, lost, kept = (curve(*kind, batches) for kind in (("float32", 1.0), ("float16", 1.0), ("float16", SCALE)))
    assert exact[-1] < 0.5 * exact[0]
    np.testing.assert_allclose(kept, exact, rtol=0.01)
    assert lost[-1] > 1.5 * exact[-1]


def test_a_float16_training_follows_jax(device, rng):
    """Ten steps with the scale taken in and out on both sides; 2e-3 in the loss, from 2^-11 for each rounding."""
    batches = [tokens(rng, CONFIG, 2, 16) for _ in range(10)]
    ours = curve("float16", SCALE, batches)
    params = weights_of(PaLM(CONFIG, seed=2))
    state, expected = adamw.init(params), []
    update = compiled(partial(adamw.update, peak=3e-3, clip_norm=jnp.inf))
    for k, (inputs, targets) in enumerate(batches, 1):
        loss, grads = in_jax(params, inputs, targets, PALM_TOKENS, SCALE, jnp.float16)
        expected.append(float(loss))
        params, state, _ = update(params, grads, state, k)
    np.testing.assert_allclose(ours, expected, rtol=2e-3)

"""Every switch of the model trains, in every dtype of a CPU, and follows JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.twins import EVEN, shape_of, tokens, weights_of
from reference import ablations, adamw, compiled
from reference import palm as reference
from switches import SWITCHES, name_of

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.config import OptimizerConfig
from mindspore_palm.devices import DEVICES
from mindspore_palm.model.loss import Loss
from mindspore_palm.optim import make_optimizer
from mindspore_palm.parallel.axes import Layout, layout
from mindspore_palm.train.step import TrainStep

STEPS, RATE = 3, 1e-3
TOLERANCE = {"float32": 1e-5, "float16": 2e-3}  # of the loss; float16 rounds by 2^-11
CASES = [{}, *SWITCHES]


@pytest.fixture(scope="module")
def batches():
    draw = np.random.default_rng(4)
    return [tokens(draw, PaLMConfig(**EVEN), 2, 12) for _ in range(STEPS)]


def in_jax(weights, batches, shape, switches) -> list[float]:
    """Losses of the same training in JAX, in float32."""

    @compiled
    def step(weights, state, k, inputs, targets):
        def objective(w):
            z = ablations.logits(w, inputs, shape, **switches)
            return reference.loss_of(z, jnp.maximum(targets, 0), (targets >= 0).astype(jnp.float32), shape)[0]

        loss, gradients = jax.value_and_grad(objective)(weights)
        return *adamw.update(weights, gradients, state, k, peak=RATE)[:2], loss

    state, losses = adamw.init(weights), []
    for k, (inputs, targets) in enumerate(batches, 1):
        weights, state, loss = step(weights, state, k, inputs, targets)
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize("switches", CASES, ids=name_of)
def test_training_follows_jax(device, batches, switches):
    config = PaLMConfig(**{**EVEN, "layers": 1}, **switches)
    expected = None
    for dtype in DEVICES["CPU"].dtypes:
        with layout(Layout(compute_dtype=dtype)):
            palm = PaLM(config, seed=2)
            expected = expected or in_jax(weights_of(palm), batches, shape_of(config), switches)
            adam = OptimizerConfig(name="adamw", learning_rate=RATE)
            step = TrainStep(Loss(palm), make_optimizer(palm.trainable_params(), adam, STEPS), clip_norm=1.0)
            losses = [step(*batch, loss_scale=1024.0).loss for batch in batches]
        assert losses == pytest.approx(expected, rel=TOLERANCE[dtype]), dtype

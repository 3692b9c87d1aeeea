"""The stacked and scanned JAX reference, which compiles for pods, is the reference that the parity tests use."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.twins import relative
from reference import adafactor, compiled, palm, pods

SHAPE = palm.Shape(layers=2, d_model=36, heads=3, head_dim=8, d_ff=144, vocab=61, padded_vocab=64)
TOLERANCE = 2e-6  # as in test_model.py


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(3)
    shapes = palm.weight_shapes(SHAPE)
    weights = {name: jnp.asarray(0.2 * rng.standard_normal(size), jnp.float32) for name, size in shapes.items()}
    tokens, targets = rng.integers(0, SHAPE.vocab, (2, 2, 16)).astype(np.int32)
    return weights, tokens, targets, jnp.asarray(rng.random((2, 16)) < 0.8, jnp.float32)


def of_layers(stacked):
    """Stacked weights or gradients to one weight a layer."""
    rest = {f"blocks.{i}.{name}": stacked[name][i] for name in pods.STACKED for i in range(SHAPE.layers)}
    return {"embedding": stacked["embedding"], **rest}


@pytest.fixture(scope="module")
def plain(case):
    """The reference's loss, cross-entropy and gradients."""
    weights, tokens, targets, mask = case
    return compiled(jax.value_and_grad(lambda w: palm.loss(w, tokens, targets, mask, SHAPE), has_aux=True))(weights)


@pytest.mark.parametrize("recompute", ["none", "attention", "minimal", "block"])
def test_loss_and_every_gradient(case, plain, recompute):
    weights, tokens, targets, mask = case

    def stacked_loss(stacked):
        return pods.loss(stacked, tokens, targets, mask, SHAPE, recompute=recompute)

    expected, gradients = plain
    found, stacked = compiled(jax.value_and_grad(stacked_loss, has_aux=True))(pods.stack(weights, SHAPE))
    assert np.asarray(found) == pytest.approx(np.asarray(expected), rel=TOLERANCE)
    ours = of_layers(stacked)
    errors = {name: relative(ours[name], gradient) for name, gradient in gradients.items()}
    assert len(errors) == 1 + 4 * SHAPE.layers and max(errors.values()) < TOLERANCE, errors


def test_a_step_of_adafactor_knows_each_layer(case):
    """Root mean squares are over one layer's weight, not over the stack."""
    weights, tokens, targets, _ = case
    # layers of different sizes, where one root mean square for all would show
    weights = {name: w * (1 + 3 * ("blocks.1" in name)) for name, w in weights.items()}

    @compiled
    def step(weights):
        def objective(weights):
            return palm.loss(weights, tokens, targets, jnp.ones(targets.shape, jnp.float32), SHAPE)

        (value, _), gradients = jax.value_and_grad(objective, has_aux=True)(weights)
        return (*adafactor.update(weights, gradients, adafactor.init(weights), 1), value)

    expected, state, norm, value = step(weights)
    stacked = pods.stack(weights, SHAPE)
    found = compiled(lambda w: pods.train_step(w, adafactor.init(w), tokens, targets, 1, SHAPE))(stacked)
    assert [float(x) for x in found[2:]] == pytest.approx([float(value), float(norm)], rel=TOLERANCE)
    for ours, theirs in ((found[0], expected), (found[1]["v"], state["v"]), (found[1]["m"], state["m"])):
        ours = of_layers(ours)
        errors = {name: relative(ours[name], theirs[name]) for name in theirs}
        assert max(errors.values()) < 10 * TOLERANCE, errors


def test_bfloat16_is_in_the_products_of_blocks_alone(case):
    """Near the loss in float32, not equal to it; and no gradient leaves float32."""
    weights, tokens, targets, mask = case
    stacked = pods.stack(weights, SHAPE)
    losses = {
        dtype: compiled(lambda w, dtype=dtype: pods.loss(w, tokens, targets, mask, SHAPE, dtype=dtype)[0])(stacked)
        for dtype in (jnp.float32, jnp.bfloat16)
    }
    difference = abs(float(losses[jnp.bfloat16]) / float(losses[jnp.float32]) - 1)
    assert 1e-6 < difference < 2e-2
    text = str(jax.make_jaxpr(lambda w: pods.loss(w, tokens, targets, mask, SHAPE, dtype=jnp.bfloat16))(stacked))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert sum("f32[2,16,64]" in line for line in products) == 1  # logits
    assert sum("bf16[" in line.split("=")[0] for line in products) == 5  # q_wi, kv, scores, mix, o_wo

"""Loss on targets only, dropout and LoRA, against JAX and against the network without them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mindspore import Tensor
from parity.twins import EVEN, reference_loss, relative, weights_of
from reference import compiled
from reference import palm as reference

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.config import OptimizerConfig, Settings
from mindspore_palm.data.pairs import Pair, Pairs
from mindspore_palm.generate.decoder import Decoder
from mindspore_palm.model.dropout import draw_dropout_mask
from mindspore_palm.model.lora import adapt, merge
from mindspore_palm.model.loss import Loss
from mindspore_palm.optim import make_optimizer
from mindspore_palm.train.finetune import dropout_mask
from mindspore_palm.train.step import TrainStep

CONFIG = PaLMConfig(**EVEN)
LENGTH = 12


def trainer(palm, rate, dropout=False):
    config = OptimizerConfig(name="adamw", schedule="constant", learning_rate=rate)
    return TrainStep(Loss(palm), make_optimizer(palm.trainable_params(), config, 10), clip_norm=0.0, dropout=dropout)


@pytest.fixture
def batch(rng):
    pairs = [
        Pair(*(rng.integers(1, CONFIG.vocab_size, n).astype(np.int32) for n in lengths))
        for lengths in ((5, 3), (0, 2), (9, 3), (4, 1))
    ]
    return Pairs(pairs).examples(range(4), LENGTH, eod=0)


@pytest.fixture(scope="module")
def mask_of():
    return lambda step: draw_dropout_mask(0, step, range(4), 1 + CONFIG.layers, CONFIG.d_model, 0.1)


@pytest.fixture(scope="module")
def dropped(device):
    """The weights of a network, and a step with dropout whose tiny learning rate keeps them almost unchanged."""
    palm = PaLM(CONFIG, seed=3)
    weights = weights_of(palm)
    return weights, trainer(palm, 1e-12, dropout=True)


def loss_with(weights, inputs, targets, mask):
    """PaLM's loss in JAX with ``mask`` after the embedding and after each block."""
    shape = reference.Shape(CONFIG.layers, CONFIG.d_model, CONFIG.heads, CONFIG.head_dim, CONFIG.d_ff, 64, 64)
    x = jnp.take(weights["embedding"], inputs, axis=0) * mask[:, :1]
    for i in range(CONFIG.layers):
        names = ("norm.scale", "q_wi", "kv", "o_wo")
        out = reference.block(x, {name: weights[f"blocks.{i}.{name}"] for name in names}, shape) - x
        x = x + out * mask[:, i + 1 : i + 2]
    logits = reference.unembed(x, weights["embedding"], shape)
    mask = jnp.asarray(targets >= 0, jnp.float32)
    return reference.loss_of(logits, jnp.maximum(targets, 0), mask, shape)


def norm_of(gradients):
    return float(np.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in gradients.values())))


def test_only_targets_have_a_loss(device, batch):
    """Against JAX, which gets a mask of the targets; predictions within a prompt have no loss."""
    palm = PaLM(CONFIG, seed=3)
    inputs, targets = batch
    assert (targets >= 0).sum() == 3 + 2 + 3 + 1
    in_jax = jax.value_and_grad(lambda w: reference_loss(w, inputs, targets, CONFIG)[0])
    expected, gradients = compiled(in_jax)(weights_of(palm))
    result = trainer(palm, 1e-12)(inputs, targets)
    assert result.loss == pytest.approx(float(expected), rel=2e-6)
    assert result.gradient_norm == pytest.approx(norm_of(gradients), rel=1e-5)


def test_dropout_is_that_of_jax_with_the_same_mask(dropped, batch, mask_of):
    weights, step = dropped
    in_jax, losses = compiled(jax.value_and_grad(loss_with, has_aux=True)), []
    for k in (1, 2, 1):
        mask = mask_of(k)
        (expected, _), gradients = in_jax(weights, *batch, jnp.asarray(mask))
        result = step(*batch, None, mask)
        assert result.loss == pytest.approx(float(expected), rel=2e-6)
        assert result.gradient_norm == pytest.approx(norm_of(gradients), rel=1e-5)
        losses.append(result.loss)
    assert losses[0] != losses[1] and losses[2] == pytest.approx(losses[0], rel=1e-6)
    assert float(reference_loss(weights, *batch, CONFIG)[0]) != pytest.approx(losses[0], rel=1e-3)


def test_a_mask_of_ones_is_no_dropout(dropped, batch):
    """A mask of ones gives the loss without dropout."""
    weights, step = dropped
    everything = np.ones((4, 1 + CONFIG.layers, CONFIG.d_model), np.float32)
    expected = float(reference_loss(weights, *batch, CONFIG)[0])
    assert step(*batch, None, everything).loss == pytest.approx(expected, rel=2e-6)


def test_the_dropout_mask():
    """One feature in ten is dropped and the rest is scaled up; a function of seed, step and sequence on any worker."""
    mask = draw_dropout_mask(0, 5, range(64), 3, 100, 0.1)
    assert mask.dtype == np.float32 and set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.9)}
    assert (mask == 0).mean() == pytest.approx(0.1, abs=4 * (0.09 / mask.size) ** 0.5)
    np.testing.assert_array_equal(draw_dropout_mask(0, 5, range(32, 64), 3, 100, 0.1), mask[32:])
    for other in (draw_dropout_mask(0, 6, range(64), 3, 100, 0.1), draw_dropout_mask(1, 5, range(64), 3, 100, 0.1)):
        assert (other != mask).mean() == pytest.approx(0.18, abs=0.02)
    assert (mask[0] != mask[1]).any() and (mask[:, 0] != mask[:, 1]).any()


def test_a_mask_is_drawn_by_step_and_only_in_finetuning():
    def settings(**finetune):
        return Settings.model_validate({"model": EVEN, "finetune": finetune, "train": {"seed": 7}})

    expected = draw_dropout_mask(7, 5, range(2, 4), 1 + CONFIG.layers, CONFIG.d_model, 0.1)
    np.testing.assert_array_equal(dropout_mask(settings(checkpoint="runs/some"), 5, range(2, 4)), expected)
    for other in ({}, {"dropout": 0.5}, {"checkpoint": "runs/some", "dropout": 0.0}):
        assert dropout_mask(settings(**other), 5, range(2, 4)) is None


def test_lora_trains_only_a_and_b_and_merges_to_the_same_logits(device, batch):
    """The tolerance is 1e-5 relative, as the merged kernel is the same sum; measured below 1e-6."""
    palm = PaLM(CONFIG, seed=3)
    plain = palm(Tensor(batch[0])).asnumpy()
    palm = PaLM(CONFIG, seed=3)
    adapt(palm, rank=3, alpha=6.0, seed=1)
    before = {p.name: p.asnumpy().copy() for p in palm.get_parameters()}
    start = palm(Tensor(batch[0])).asnumpy()
    assert relative(start, plain) < 1e-6  # B is zero
    step = trainer(palm, 0.02)
    assert len(palm.trainable_params()) == 2 * 3 * CONFIG.layers
    moments = [p.name for p in step.state if p.name.startswith(("m.", "v.", "moment"))]
    assert moments and all(name.endswith(("lora_a", "lora_b")) for name in moments)
    for _ in range(8):
        step(*batch)
    for parameter in palm.get_parameters():
        changed = not np.array_equal(parameter.asnumpy(), before[parameter.name])
        assert changed == parameter.name.endswith(("lora_a", "lora_b")), parameter.name
    adapted = palm.set_train(False)(Tensor(batch[0])).asnumpy()
    assert relative(adapted, plain) > 0.1
    with pytest.raises(ValueError, match="merge"):
        Decoder(palm, 1, 8)
    merged = merge(palm)
    assert [p.name for p in merged.trainable_params()] == [p.name for p in PaLM(CONFIG).trainable_params()]
    assert relative(merged(Tensor(batch[0])).asnumpy(), adapted) < 1e-5
    weights = weights_of(merged)
    for name in ("blocks.1.o_wo", "blocks.0.kv"):  # the paper's formula, in float64
        a, b = (palm.parameters_dict()[f"{name}.lora_{part}"].asnumpy().astype(np.float64) for part in "ab")
        assert relative(weights[name], before[name] + 6.0 / 3 * (a @ b)) < 1e-6

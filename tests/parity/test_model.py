"""Logits, loss and gradients against JAX, from random weights and from a checkpoint file.

The tolerance is 2e-6, relative in norm. A float32 operation rounds by 6e-8; sums of a few hundred terms in different
orders, through two blocks and back, differ by 3e-7 to 9e-7 (measured). A wrong constant (epsilon, scale, base, z
weight) differs by 1e-4 or more.
"""

from __future__ import annotations

import jax
import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from parity.twins import EVEN, ODD, logits_of, randomise_scales, reference_loss, relative, shape_of, tokens, weights_of
from reference import compiled
from reference import palm as reference

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.model.loss import Loss

TOLERANCE = 2e-6

# name: sizes, length
CASES = {
    "proportions of 540B": (ODD, 24),
    "odd length": (EVEN, 17),
    "queries in two halves": (EVEN, 128),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, device):
    """A network, its twin's weights, tokens, and both sides' logits, losses and gradients."""
    sizes, length = CASES[request.param]
    rng = np.random.default_rng(7)
    config = PaLMConfig(**sizes)
    palm = PaLM(config, seed=11)
    loss = Loss(palm)
    randomise_scales(palm, rng)
    weights = weights_of(palm)
    inputs, targets = tokens(rng, config, 3, length)
    count = Tensor(np.float32((targets >= 0).sum()))
    ours = ms.value_and_grad(loss, None, palm.trainable_params(), has_aux=True)(Tensor(inputs), Tensor(targets), count)
    in_jax = jax.value_and_grad(lambda w: reference_loss(w, inputs, targets, config), has_aux=True)
    theirs = compiled(in_jax)(weights)
    return palm, weights, inputs, ours, theirs


def test_logits(case):
    palm, weights, inputs, _, _ = case
    logits = palm(Tensor(inputs))
    assert logits.shape == (*inputs.shape, palm.config.vocab_size) and logits.dtype == ms.float32
    expected = logits_of(weights, inputs, palm.config)[..., : palm.config.vocab_size]
    assert relative(logits.asnumpy(), expected) < TOLERANCE


def test_loss_and_cross_entropy(case):
    (loss, cross_entropy), _ = case[3]
    (expected_loss, expected_cross_entropy), _ = case[4]
    assert float(loss) == pytest.approx(float(expected_loss), rel=TOLERANCE)
    assert float(cross_entropy) == pytest.approx(float(expected_cross_entropy), rel=TOLERANCE)
    assert float(loss) > float(cross_entropy)  # includes the z-loss


def test_every_gradient(case):
    palm, _, _, (_, gradients), (_, expected) = case
    assert len(gradients) == len(expected) == 1 + 4 * palm.config.layers
    errors = {
        p.name: relative(g.asnumpy(), expected[p.name]) for p, g in zip(palm.trainable_params(), gradients, strict=True)
    }
    assert max(errors.values()) < TOLERANCE, errors


def test_from_a_checkpoint_file(device, tmp_path, rng):
    """The reference reads the file itself, by the names and shapes of the checkpoint format."""
    from safetensors.numpy import load_file, save_file

    from mindspore_palm.checkpoint.model_folder import read_weights, set_weights

    config = PaLMConfig(**ODD)
    drawn = {
        name: (0.2 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in reference.weight_shapes(shape_of(config)).items()
    }
    save_file(drawn, tmp_path / "model.safetensors")
    palm = PaLM(config)
    set_weights(palm, read_weights(tmp_path / "model.safetensors"))
    inputs, _ = tokens(rng, config, 2, 16)
    expected = logits_of(load_file(tmp_path / "model.safetensors"), inputs, config)
    assert relative(palm(Tensor(inputs)).asnumpy(), expected[..., : config.vocab_size]) < TOLERANCE


def test_a_network_has_the_counted_parameters(device):
    for config in (PaLMConfig(**ODD), PaLMConfig.from_preset("palm_tiny")):
        palm = PaLM(config)
        padding = (config.padded_vocab - config.vocab_size) * config.d_model
        scales = sum(p.size for p in palm.trainable_params() if p.name.endswith("norm.scale"))
        assert sum(p.size for p in palm.trainable_params()) - padding - scales == config.parameter_count()


def test_a_token_sees_nothing_after_it(device, rng):
    palm = PaLM(PaLMConfig(**EVEN))
    inputs, _ = tokens(rng, palm.config, 1, 128)
    changed = inputs.copy()
    changed[0, 70:] = (changed[0, 70:] + 1) % palm.config.vocab_size
    before, after = palm(Tensor(inputs)).asnumpy(), palm(Tensor(changed)).asnumpy()
    np.testing.assert_array_equal(before[0, :70], after[0, :70])
    assert np.abs(before[0, 70:] - after[0, 70:]).max() > 1e-2

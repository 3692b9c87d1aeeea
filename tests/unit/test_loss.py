"""The loss by itself: large logits, tokens that are not real, padding of the vocabulary, z-loss."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindspore_palm import PaLMConfig
from mindspore_palm.model.loss import TokenLoss


def exact(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy and log(Z) in float64."""
    z = logits.astype(np.float64)
    top = z.max(-1)
    log_z = top + np.log(np.exp(z - top[:, None]).sum(-1))
    real = targets >= 0
    return np.where(real, log_z - z[np.arange(len(z)), np.maximum(targets, 0)], 0), np.where(real, log_z, 0)


@pytest.fixture(scope="module")
def token_loss(device):
    return TokenLoss(PaLMConfig(vocab_size=40))


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_the_loss_is_exact_for_logits_of_any_size(token_loss, rng, size):
    logits = (size * rng.uniform(-1, 1, (8, 40))).astype(np.float32)
    logits[0], logits[1], logits[2, 3] = size, -size, size
    targets = rng.integers(0, 40, 8).astype(np.int32)
    targets[5] = -1
    ours = [x.asnumpy() for x in token_loss(Tensor(logits), Tensor(targets))]
    for got, expected in zip(ours, exact(logits, targets), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6 * size)
    assert ours[0][5] == ours[1][5] == 0


def test_gradients_of_huge_logits_are_probabilities_minus_the_target(token_loss, rng):
    logits = (1e4 * rng.uniform(-1, 1, (8, 40))).astype(np.float32)
    targets = rng.integers(0, 40, 8).astype(np.int32)

    def total(z, t):
        return token_loss(z, t)[0].sum()

    gradient = ms.grad(total)(Tensor(logits), Tensor(targets)).asnumpy()
    z = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    expected = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    expected[np.arange(8), targets] -= 1
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_padding_rows_get_zero_probability(device, rng):
    padded = TokenLoss(PaLMConfig(vocab_size=40, vocab_multiple=16))  # 48 rows
    logits = rng.standard_normal((6, 48)).astype(np.float32)
    logits[:, 40:] = 50.0
    targets = rng.integers(0, 40, 6).astype(np.int32)
    got = padded(Tensor(logits), Tensor(targets))[0].asnumpy()
    np.testing.assert_allclose(got, exact(logits[:, :40], targets)[0], rtol=1e-6)

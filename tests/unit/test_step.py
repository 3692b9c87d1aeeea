"""The compiled step: a step that is not finite changes nothing, and accumulated gradients are those of the batch."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.config import OptimizerConfig
from mindspore_palm.model.loss import Loss
from mindspore_palm.optim import make_optimizer
from mindspore_palm.train.step import TrainStep

CONFIG = PaLMConfig(layers=1, d_model=16, heads=2, head_dim=8, d_ff=32, vocab_size=32)


def trainer(name: str, micro_batch: int = 0):
    palm = PaLM(CONFIG, seed=1)
    config = OptimizerConfig(name=name, schedule="constant", learning_rate=0.01)
    optimizer = make_optimizer(palm.trainable_params(), config, 10)
    return palm, optimizer, TrainStep(Loss(palm), optimizer, clip_norm=1.0, micro_batch=micro_batch)


def state_of(optimizer) -> list[np.ndarray]:
    return [p.asnumpy().copy() for p in optimizer.get_parameters()] + [p.asnumpy().copy() for p in optimizer.parameters]


@pytest.fixture
def batch(rng):
    inputs, targets = rng.integers(0, 32, (2, 4, 8)).astype(np.int32)
    targets[0, :6] = -1  # micro-batches have unequal numbers of real tokens
    return inputs, targets


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_a_step_that_is_not_finite_changes_nothing(device, batch, micro_batch):
    palm, optimizer, step = trainer("adafactor", micro_batch)
    assert not step(*batch).skipped
    good = palm.embedding.asnumpy().copy()
    poisoned = good.copy()
    poisoned[int(batch[0][1, 1])] = np.nan
    palm.embedding.set_data(Tensor(poisoned))
    before = state_of(optimizer)
    result = step(*batch)
    assert result.skipped and result.learning_rate == 0 and not np.isfinite(result.loss)
    for a, b in zip(before, state_of(optimizer), strict=True):
        np.testing.assert_array_equal(a, b)
    palm.embedding.set_data(Tensor(good))
    after = step(*batch)  # nothing of the bad step is left, not even in the gradient sums
    assert not after.skipped and np.isfinite(after.loss)
    assert int(optimizer.global_step.asnumpy()[0]) == 2


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_accumulated_gradients_give_the_same_step(device, batch, name):
    """1e-6: the same sums in another order."""
    whole, parts = trainer(name), trainer(name, micro_batch=2)
    for _ in range(3):
        a, b = whole[2](*batch), parts[2](*batch)
        assert b.loss == pytest.approx(a.loss, rel=1e-6)
        assert b.cross_entropy == pytest.approx(a.cross_entropy, rel=1e-6)
        assert b.gradient_norm == pytest.approx(a.gradient_norm, rel=1e-5)
    for p, q in zip(whole[0].trainable_params(), parts[0].trainable_params(), strict=True):
        np.testing.assert_allclose(p.asnumpy(), q.asnumpy(), rtol=1e-4, atol=2e-5 if name == "adafactor" else 2e-4)


def test_equal_seeds_give_equal_bits(device, batch):
    a, b = trainer("adafactor"), trainer("adafactor")
    for _ in range(3):
        assert a[2](*batch) == b[2](*batch)
    for p, q in zip(a[0].trainable_params(), b[0].trainable_params(), strict=True):
        np.testing.assert_array_equal(p.asnumpy(), q.asnumpy())

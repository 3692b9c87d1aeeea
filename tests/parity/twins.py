"""The same sizes, weights and tokens for this package's PaLM and for the JAX reference."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
import numpy as np
from reference import ablations, compiled
from reference import palm as reference

from mindspore_palm import PaLM, PaLMConfig

# The proportions of 540B: heads * head_dim is not d_model, d_ff is 4 * d_model, the table is padded.
ODD = dict(layers=2, d_model=36, heads=3, head_dim=8, d_ff=144, vocab_size=61, vocab_multiple=8)
EVEN = dict(layers=2, d_model=32, heads=4, head_dim=8, d_ff=128, vocab_size=64)


def shape_of(config: PaLMConfig) -> reference.Shape:
    return reference.Shape(
        config.layers,
        config.d_model,
        config.heads,
        config.head_dim,
        config.d_ff,
        config.vocab_size,
        -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple,
    )


def randomise_scales(palm: PaLM, rng: np.random.Generator) -> None:
    """Gives norm scales random values: at zero, where they start, wrong use of them would not show."""
    from mindspore import Tensor

    for p in palm.trainable_params():
        if p.name.endswith("norm.scale"):
            p.set_data(Tensor((0.3 * rng.standard_normal(p.shape)).astype(np.float32)))


def weights_of(palm: PaLM) -> dict[str, jnp.ndarray]:
    return {p.name: jnp.asarray(p.asnumpy()) for p in palm.trainable_params()}


def tokens(rng: np.random.Generator, config: PaLMConfig, batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets; a few targets are not real tokens."""
    inputs, targets = rng.integers(0, config.vocab_size, (2, batch, length)).astype(np.int32)
    targets[0, :3] = -1
    return inputs, targets


def logits_of(weights, ids: np.ndarray, config: PaLMConfig, **departures) -> np.ndarray:
    """The reference's logits [B, S, padded_vocab] of ids int32 [B, S], with ``departures`` from PaLM."""
    of = partial(ablations.logits, **departures) if departures else reference.logits
    return np.asarray(compiled(lambda w: of(w, ids, shape_of(config)))(weights))


def reference_loss(weights, inputs, targets, config, z_weight=1e-4):
    mask = jnp.asarray(targets >= 0, jnp.float32)
    return reference.loss(weights, inputs, jnp.maximum(targets, 0), mask, shape_of(config), z_weight)


def relative(ours, reference) -> float:
    """Norm of the difference over the norm of the reference, in float64."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    return float(np.linalg.norm(ours - reference) / max(np.linalg.norm(reference), 1e-30))

"""AdamW in JAX, from arXiv 1711.05101 (algorithm 2): decay apart from the gradient, both moments bias-corrected."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reference.adafactor import init

__all__ = ["init", "update"]


def update(params, grads, state, k, clip_norm=1.0, peak=1e-2, decay=0.0, beta1=0.9, beta2=0.99, eps=1e-8):
    """One step; ``k`` counts from 1. Returns (params, state, norm of the gradients before the clip).

    The rate is ``min(peak, 1/sqrt(k))``. Norm scales, the weights of one axis, are not decayed.
    """
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
    shrink = jnp.minimum(1.0, clip_norm / norm)
    k = jnp.float32(k)
    lr = jnp.minimum(peak, 1.0 / jnp.sqrt(k))

    def one(p, g, v, m):
        g = g * shrink
        p = p * (1.0 - lr * decay) if p.ndim > 1 else p
        m = beta1 * m + (1.0 - beta1) * g
        v = beta2 * v + (1.0 - beta2) * g * g
        return p - lr * (m / (1.0 - beta1**k)) / (jnp.sqrt(v / (1.0 - beta2**k)) + eps), v, m

    new = {name: one(params[name], grads[name], state["v"][name], state["m"][name]) for name in params}
    params, v, m = ({name: new[name][i] for name in new} for i in range(3))
    return params, {"v": v, "m": m}, norm

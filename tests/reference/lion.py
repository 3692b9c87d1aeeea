"""Lion in JAX, from arXiv 2302.06675 (algorithm 2): one moment, and the sign of its blend with the gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def init(params):
    return {"m": jax.tree.map(jnp.zeros_like, params)}


def update(params, grads, state, k, clip_norm=1.0, peak=1e-2, decay=0.0, beta1=0.9, beta2=0.99):
    """One step; ``k`` counts from 1. Returns (params, state, norm of the gradients before the clip).

    The rate is ``min(peak, 1/sqrt(k))``. Norm scales, the weights of one axis, do not decay.
    """
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
    shrink = jnp.minimum(1.0, clip_norm / norm)
    lr = jnp.minimum(peak, 1.0 / jnp.sqrt(jnp.float32(k)))

    def one(p, g, m):
        g = g * shrink
        c = beta1 * m + (1.0 - beta1) * g
        strength = decay if p.ndim > 1 else 0.0
        return p - lr * (jnp.sign(c) + strength * p), beta2 * m + (1.0 - beta2) * g

    new = {name: one(params[name], grads[name], state["m"][name]) for name in params}
    params, m = ({name: new[name][i] for name in new} for i in range(2))
    return params, {"m": m}, norm

"""Adafactor as PaLM used it (no factoring), in JAX: section 5 of the paper, order of operations of T5X."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rms(x):
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def init(params):
    return {"v": jax.tree.map(jnp.zeros_like, params), "m": jax.tree.map(jnp.zeros_like, params)}


def update(params, grads, state, k, clip_norm: float = 1.0, update_clip: float = 1.0, stacked=()):
    """One step; ``k`` counts from 1. Returns (params, state, norm of the gradients before the clip).

    ``stacked``: names of weights whose first axis is the layers, each a weight of its own.
    """
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
    shrink = jnp.minimum(1.0, clip_norm / norm)
    k = jnp.float32(k)
    lr = jnp.minimum(1e-2, 1.0 / jnp.sqrt(k))
    decay = 1.0 - k**-0.8

    def one(p, g, v, m):
        g = g * shrink
        v = decay * v + (1.0 - decay) * (g * g + 1e-30)
        u = g / jnp.sqrt(v)
        u = u / jnp.maximum(1.0, rms(u) / update_clip)
        m = 0.9 * m + 0.1 * (lr * jnp.maximum(1e-3, rms(p)) * u)
        return (1.0 - lr * lr) * p - m, v, m

    new = {
        name: (jax.vmap(one) if name in stacked else one)(params[name], grads[name], state["v"][name], state["m"][name])
        for name in params
    }
    params, v, m = ({name: new[name][i] for name in new} for i in range(3))
    return params, {"v": v, "m": m}, norm

"""Adafactor as PaLM used it (no factoring), in JAX: section 5 of the paper, order of operations of T5X.

With ``factored``, its second moment is used as by those who do factor it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rms(x):
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def init(params):
    return {"v": jax.tree.map(jnp.zeros_like, params), "m": jax.tree.map(jnp.zeros_like, params)}


def from_means(v):
    """The second moment of a matrix from its row and column means alone (arXiv 1804.04235, section 3); others as is.

    The means of a moving average are the moving averages of the means: nothing is lost by taking them here.
    """
    return v if v.ndim != 2 else v.mean(1, keepdims=True) * v.mean(0, keepdims=True) / v.mean()


def update(params, grads, state, k, clip_norm=1.0, update_clip: float = 1.0, stacked=(), factored: bool = False):
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
        u = g / jnp.sqrt(from_means(v) if factored else v)
        u = u / jnp.maximum(1.0, rms(u) / update_clip)
        m = 0.9 * m + 0.1 * (lr * jnp.maximum(1e-3, rms(p)) * u)
        return (1.0 - lr * lr) * p - m, v, m

    new = {
        name: (jax.vmap(one) if name in stacked else one)(params[name], grads[name], state["v"][name], state["m"][name])
        for name in params
    }
    params, v, m = ({name: new[name][i] for name in new} for i in range(3))
    return params, {"v": v, "m": m}, norm

"""Departures from PaLM in JAX: the standard Transformer's parts, and those of other PaLMs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reference.palm import HIGHEST, Shape, rope

ACTIVATIONS = {
    "swiglu": lambda gate, up: jax.nn.silu(gate) * up,
    "geglu": lambda gate, up: jax.nn.gelu(gate, approximate=True) * up,
    "gelu": lambda up: jax.nn.gelu(up, approximate=True),
    "relu": jax.nn.relu,
}


def normalised(x, scale, norm: str, norm_epsilon: float, norm_scale: str):
    """As the papers write it: the variance about the mean, or the mean square; a scale about zero or one, or none."""
    x = x.astype(jnp.float32)
    if norm == "layer_norm":
        y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + norm_epsilon)
    else:
        y = x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + norm_epsilon)
    return y if scale is None else y * (scale if norm_scale == "around_one" else 1 + scale)


def decay(length: int, head_dim: int, base: float):
    """xPos (arXiv 2212.10554, equation 11): zeta^((n - m) / base) for query n and key m, [S, S, K/2]."""
    zeta = (jnp.arange(0, head_dim, 2) / head_dim + 0.4) / 1.4
    distance = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    return zeta ** (distance[..., None] / base)


def alibi(length: int, heads: int):
    """Press et al. (arXiv 2108.12409, section 3): -m (q - t) for query q and key t, m = 2^(-8/n), 2^(-16/n), ...."""
    slopes = jnp.array([2 ** (-8 * (i + 1) / heads) for i in range(heads)])
    distance = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    return -slopes[:, None, None] * distance


def block_output(x, weights, shape: Shape, block: str, attention: str, mlp: str, norms, xpos_base: float, position):
    batch, length, d_model = x.shape
    inputs = 2 if mlp in ("swiglu", "geglu") else 1
    w_in = weights["q_wi"].reshape(d_model, shape.heads, -1)
    w_q, w_mlp = w_in[..., : shape.head_dim], w_in[..., shape.head_dim :]
    w_out = weights["o_wo"].reshape(shape.heads, -1, d_model)
    w_o, w_down = w_out[:, : shape.head_dim], w_out[:, shape.head_dim :]
    kv_heads = shape.heads if attention == "multi_head" else 1

    y = normalised(x, weights["norm.scale"], *norms)
    rotated = rope if position == "rope" else lambda x: x
    q = rotated(jnp.einsum("bsd,dhk->bshk", y, w_q, precision=HIGHEST))
    kv = jnp.einsum("bsd,dc->bsc", y, weights["kv"], precision=HIGHEST).reshape(batch, length, 2, kv_heads, -1)
    k, v = rotated(kv[:, :, 0]), kv[:, :, 1]
    k, v = (jnp.repeat(t, shape.heads // kv_heads, axis=2) for t in (k, v))
    factors = decay(length, shape.head_dim, xpos_base) if xpos_base else jnp.ones((length, length, shape.head_dim // 2))
    factors = jnp.concatenate([factors, factors], axis=-1)
    scores = jnp.einsum("bqhk,bthk,qtk->bhqt", q, k, factors, precision=HIGHEST)
    scores = scores / jnp.sqrt(jnp.float32(shape.head_dim))
    scores = scores + alibi(length, shape.heads) if position == "alibi" else scores
    seen = jnp.tril(jnp.ones((length, length), bool))
    probabilities = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    attended = jnp.einsum("bhqt,bthk->bqhk", probabilities, v, precision=HIGHEST)
    attended = jnp.einsum("bqhk,hkd->bqd", attended, w_o, precision=HIGHEST)

    if block == "serial":
        y = normalised(x + attended, weights["mlp_norm.scale"], *norms)
    hidden = jnp.einsum("bsd,dhf->bshf", y, w_mlp, precision=HIGHEST)
    hidden = ACTIVATIONS[mlp](*jnp.split(hidden, inputs, axis=-1))
    return x + attended + jnp.einsum("bshf,hfd->bsd", hidden, w_down, precision=HIGHEST)


def logits(
    params,
    token_ids,
    shape: Shape,
    block: str = "parallel",
    attention: str = "multi_query",
    mlp: str = "swiglu",
    norm: str = "rms_norm",
    norm_epsilon: float = 1e-6,
    norm_scale: str = "around_zero",
    final_norm_scale: bool = False,
    scaled_logits: bool = True,
    xpos_base: float = 0.0,
    position: str = "rope",
    position_rows: int = 0,
):
    norms = (norm, norm_epsilon, norm_scale)
    x = params["embedding"][token_ids]
    if position == "learned":
        assert params["positions"].shape[0] == position_rows
        x = x + params["positions"][: token_ids.shape[1]]
    for i in range(shape.layers):
        prefix = f"blocks.{i}."
        weights = {name.removeprefix(prefix): w for name, w in params.items() if name.startswith(prefix)}
        x = block_output(x, weights, shape, block, attention, mlp, norms, xpos_base, position)
    y = normalised(x, params["final_norm.scale"] if final_norm_scale else None, *norms)
    z = jnp.einsum("bsd,vd->bsv", y, params["embedding"], precision=HIGHEST)
    return z / jnp.sqrt(jnp.float32(shape.d_model)) if scaled_logits else z

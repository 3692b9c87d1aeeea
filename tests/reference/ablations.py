"""The standard Transformer's parts in JAX: serial block, multi-head attention, other mlps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reference.palm import HIGHEST, Shape, rms_norm, rope

ACTIVATIONS = {
    "swiglu": lambda gate, up: jax.nn.silu(gate) * up,
    "geglu": lambda gate, up: jax.nn.gelu(gate, approximate=True) * up,
    "gelu": lambda up: jax.nn.gelu(up, approximate=True),
    "relu": jax.nn.relu,
}


def block(x, weights, shape: Shape, parallel: bool, attention: str, mlp: str):
    batch, length, d_model = x.shape
    inputs = 2 if mlp in ("swiglu", "geglu") else 1
    w_in = weights["q_wi"].reshape(d_model, shape.heads, -1)
    w_q, w_mlp = w_in[..., : shape.head_dim], w_in[..., shape.head_dim :]
    w_out = weights["o_wo"].reshape(shape.heads, -1, d_model)
    w_o, w_down = w_out[:, : shape.head_dim], w_out[:, shape.head_dim :]
    kv_heads = shape.heads if attention == "multi_head" else 1

    y = rms_norm(x, weights["norm.scale"])
    q = rope(jnp.einsum("bsd,dhk->bshk", y, w_q, precision=HIGHEST))
    kv = jnp.einsum("bsd,dc->bsc", y, weights["kv"], precision=HIGHEST).reshape(batch, length, 2, kv_heads, -1)
    k, v = rope(kv[:, :, 0]), kv[:, :, 1]
    k, v = (jnp.repeat(t, shape.heads // kv_heads, axis=2) for t in (k, v))
    scores = jnp.einsum("bqhk,bthk->bhqt", q, k, precision=HIGHEST) / jnp.sqrt(jnp.float32(shape.head_dim))
    seen = jnp.tril(jnp.ones((length, length), bool))
    probabilities = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    attended = jnp.einsum("bhqt,bthk->bqhk", probabilities, v, precision=HIGHEST)
    attended = jnp.einsum("bqhk,hkd->bqd", attended, w_o, precision=HIGHEST)

    if not parallel:
        y = rms_norm(x + attended, weights["mlp_norm.scale"])
    hidden = jnp.einsum("bsd,dhf->bshf", y, w_mlp, precision=HIGHEST)
    hidden = ACTIVATIONS[mlp](*jnp.split(hidden, inputs, axis=-1))
    return x + attended + jnp.einsum("bshf,hfd->bsd", hidden, w_down, precision=HIGHEST)


def logits(params, token_ids, shape: Shape, parallel: bool, attention: str, mlp: str):
    x = params["embedding"][token_ids]
    for i in range(shape.layers):
        prefix = f"blocks.{i}."
        own = {name.removeprefix(prefix): w for name, w in params.items() if name.startswith(prefix)}
        x = block(x, own, shape, parallel, attention, mlp)
    z = jnp.einsum("bsd,vd->bsv", rms_norm(x), params["embedding"], precision=HIGHEST)
    return z / jnp.sqrt(jnp.float32(shape.d_model))

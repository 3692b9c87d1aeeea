"""PaLM in JAX, from the paper (arXiv 2204.02311) and Google's published inference code.

Shape letters: B batch, S length, D d_model, H heads, K head_dim, V padded vocabulary. Weights are a flat dictionary,
by the names of the checkpoint format.

Every weight and activation is annotated with the axes of a TPU mesh (``pod``, ``data``, ``model``). Without a mesh, or
on a mesh of one device, the annotations do nothing; on TPU pods they are PaLM's own layout.

``dtype`` is that of activations and matmuls inside blocks; weights, norms, rotation, softmax, logits and loss are
always float32. In float32, matmuls have the highest precision that a machine offers.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

BATCH = ("pod", "data")
HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Shape:
    """The sizes of one PaLM."""

    layers: int
    d_model: int
    heads: int
    head_dim: int
    d_ff: int
    vocab: int
    padded_vocab: int

    @property
    def mlp_per_head(self) -> int:
        return self.d_ff // self.heads


# How PaLM shards each weight: mesh axes of (rows, columns).
WEIGHT_AXES = {
    "embedding": ("model", "data"),
    "norm.scale": (None,),
    "q_wi": ("data", "model"),
    "kv": ("data", None),
    "o_wo": ("model", "data"),
}


def pin(x, mesh, *axes):
    """``x`` with a sharding annotation: its dimensions are sharded over ``axes`` of the mesh."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))


def matmul(equation, x, y, dtype=jnp.float32):
    """``einsum`` in ``dtype``."""
    precision = HIGHEST if dtype == jnp.float32 else None
    return jnp.einsum(equation, x.astype(dtype), y.astype(dtype), precision=precision)


def rms_norm(x, scale=None):
    """Root mean square norm in fp32 with a scale stored around zero."""
    x = x.astype(jnp.float32)
    y = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
    return y if scale is None else y * (1.0 + scale)


def rope(x):
    """Rotary positions over all of the last axis, half-split pairing, base 10000. ``x`` is [B, S, H, K]."""
    length, dim = x.shape[1], x.shape[-1]
    frequency = 10000.0 ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    angle = jnp.arange(length, dtype=jnp.float32)[:, None] * frequency[None, :]
    cos, sin = jnp.cos(angle)[None, :, None, :], jnp.sin(angle)[None, :, None, :]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(q, k, v, dtype=jnp.float32):
    """Causal multi-query attention. ``q`` [B, S, H, K]; ``k``, ``v`` [B, S, K]."""
    length = q.shape[1]
    scores = matmul("bqhk,btk->bhqt", q, k, dtype).astype(jnp.float32) / jnp.sqrt(jnp.float32(q.shape[-1]))
    causal = jnp.arange(length)[:, None] >= jnp.arange(length)[None, :]
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
    return matmul("bhqt,btk->bqhk", weights, v, dtype)


def block(x, weights, shape: Shape, mesh=None, dtype=jnp.float32, attend=attention):
    """``y = x + MLP(norm(x)) + Attention(norm(x))`` with the fused per-head kernels."""
    batch, length, _ = x.shape
    head_dim, mlp = shape.head_dim, shape.mlp_per_head
    y = rms_norm(x, weights["norm.scale"])
    fused = matmul("bsd,dc->bsc", y, weights["q_wi"], dtype)
    fused = pin(fused.reshape(batch, length, shape.heads, head_dim + 2 * mlp), mesh, BATCH, None, "model", None)
    q, gate, up = jnp.split(fused, [head_dim, head_dim + mlp], axis=-1)
    k, v = jnp.split(matmul("bsd,dc->bsc", y, weights["kv"], dtype), 2, axis=-1)
    attended = attend(rope(q), rope(k[:, :, None, :])[:, :, 0, :], v, dtype)
    joined = jnp.concatenate([attended, jax.nn.silu(gate) * up], axis=-1).reshape(batch, length, -1)
    out = matmul("bsc,cd->bsd", joined, weights["o_wo"], dtype)
    return pin(x + out, mesh, BATCH, None, "model")


def embed(table, token_ids, dtype=jnp.float32):
    """int32 [B, S] to [B, S, D]."""
    return jnp.take(table, token_ids, axis=0).astype(dtype)


def unembed(x, table, shape: Shape, mesh=None, dtype=jnp.float32):
    """[B, S, D] to float32 [B, S, V]. Has the highest precision only if ``dtype``, that of the blocks, is float32."""
    z = jnp.einsum("bsd,vd->bsv", rms_norm(x), table, precision=HIGHEST if dtype == jnp.float32 else None)
    return pin(z / jnp.sqrt(jnp.float32(shape.d_model)), mesh, BATCH, None, "model")


def logits(params, token_ids, shape: Shape, mesh=None, dtype=jnp.float32):
    """int32 [B, S] to float32 [B, S, padded_vocab]."""
    x = embed(params["embedding"], token_ids, dtype)
    for i in range(shape.layers):
        weights = {name: params[f"blocks.{i}.{name}"] for name in ("norm.scale", "q_wi", "kv", "o_wo")}
        x = block(x, weights, shape, mesh, dtype)
    return unembed(x, params["embedding"], shape, mesh, dtype)


def loss(params, token_ids, targets, mask, shape: Shape, z_weight: float = 1e-4, mesh=None, dtype=jnp.float32):
    """Mean over real tokens of cross-entropy + z_weight * log(Z)^2; returns (loss, cross-entropy alone)."""
    return loss_of(logits(params, token_ids, shape, mesh, dtype), targets, mask, shape, z_weight)


def loss_of(z, targets, mask, shape: Shape, z_weight: float = 1e-4):
    """The same from logits. Padding rows of the vocabulary are not tokens and get no probability."""
    z = jnp.where(jnp.arange(shape.padded_vocab) < shape.vocab, z, -jnp.inf)
    log_z = jax.scipy.special.logsumexp(z, axis=-1)
    cross_entropy = log_z - jnp.take_along_axis(z, targets[..., None], axis=-1)[..., 0]
    count = jnp.maximum(mask.sum(), 1.0)
    return ((cross_entropy + z_weight * jnp.square(log_z)) * mask).sum() / count, (cross_entropy * mask).sum() / count


def weight_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name to shape of every weight, in order."""
    shapes: dict[str, tuple[int, ...]] = {"embedding": (shape.padded_vocab, shape.d_model)}
    for i in range(shape.layers):
        shapes[f"blocks.{i}.norm.scale"] = (shape.d_model,)
        shapes[f"blocks.{i}.q_wi"] = (shape.d_model, shape.heads * (shape.head_dim + 2 * shape.mlp_per_head))
        shapes[f"blocks.{i}.kv"] = (shape.d_model, 2 * shape.head_dim)
        shapes[f"blocks.{i}.o_wo"] = (shape.heads * (shape.head_dim + shape.mlp_per_head), shape.d_model)
    return shapes


def shardings(shape: Shape, mesh) -> dict[str, NamedSharding]:
    """The layout of every weight on a ``pod`` x ``data`` x ``model`` mesh, as PaLM sharded them."""
    axes = {name: WEIGHT_AXES[name.split(".", 2)[-1]] for name in weight_shapes(shape)}
    return {name: NamedSharding(mesh, PartitionSpec(*axis)) for name, axis in axes.items()}

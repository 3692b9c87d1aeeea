"""The same reference for full pods: blocks stacked and scanned, so that 118 of them compile as one.

Weights are a dictionary of five: ``embedding`` and, with the layers as first axis, ``norm.scale``, ``q_wi``, ``kv`` and
``o_wo``. Each is sharded by ``palm.WEIGHT_AXES``, and gathered over data for use, in the dtype of the matmuls.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from reference import adafactor, palm
from reference.palm import BATCH, WEIGHT_AXES, Shape, pin

KERNELS = ("q_wi", "kv", "o_wo")
STACKED = ("norm.scale", *KERNELS)
POLICIES = {
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "block": jax.checkpoint_policies.nothing_saveable,
}


def stack(params, shape: Shape):
    """Weights by the names of the checkpoint format to the five."""
    layers = {name: jnp.stack([params[f"blocks.{i}.{name}"] for i in range(shape.layers)]) for name in STACKED}
    return {"embedding": params["embedding"], **layers}


def gathered(weight, mesh, axes, dtype):
    """``weight`` gathered over data. The cast comes first, so the all-gather is in the dtype of the matmuls."""
    return pin(weight.astype(dtype), mesh, *(None if axis == "data" else axis for axis in axes))


def loss(params, token_ids, targets, mask, shape: Shape, mesh=None, dtype=jnp.float32, recompute="none", unroll=False):
    """``palm.loss`` of stacked weights.

    Args:
        recompute: what the backward pass recomputes. none; attention: everything between its arguments and its result;
            minimal, as T5X calls it: everything but the matmuls with weights, so both matmuls of attention; block:
            everything but the block's input.
        unroll: no loop over the layers, so that operations can be counted.
    """
    attend = palm.attention
    if recompute == "attention":
        attend = jax.checkpoint(palm.attention, static_argnums=3, prevent_cse=unroll)

    def one_layer(x, weights):
        kernels = {name: gathered(weights[name], mesh, WEIGHT_AXES[name], dtype) for name in KERNELS}
        return palm.block(x, {**weights, **kernels}, shape, mesh, dtype, attend), None

    if recompute in POLICIES:
        one_layer = jax.checkpoint(one_layer, prevent_cse=unroll, policy=POLICIES[recompute])
    table = gathered(params["embedding"], mesh, WEIGHT_AXES["embedding"], jnp.float32)
    x = pin(palm.embed(table, token_ids, dtype), mesh, BATCH, None, "model")
    x, _ = jax.lax.scan(one_layer, x, {name: params[name] for name in STACKED}, unroll=unroll)
    return palm.loss_of(palm.unembed(x, table, shape, mesh, dtype), targets, mask, shape)


def train_step(params, state, token_ids, targets, k, shape: Shape, **settings):
    """One step of Adafactor on real tokens only; ``settings`` of ``loss``. Returns (params, state, loss, norm)."""

    def objective(params):
        return loss(params, token_ids, targets, jnp.ones(targets.shape, jnp.float32), shape, **settings)

    (value, _), gradients = jax.value_and_grad(objective, has_aux=True)(params)
    params, state, norm = adafactor.update(params, gradients, state, k, stacked=STACKED)
    return params, state, value, norm


def weight_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Shapes of the five."""
    one = palm.weight_shapes(shape)
    layers = {name: (shape.layers, *one[f"blocks.0.{name}"]) for name in STACKED}
    return {"embedding": one["embedding"], **layers}


def shardings(mesh) -> dict[str, NamedSharding]:
    """The layout of the five."""
    axes = {name: (None, *WEIGHT_AXES[name]) if name in STACKED else WEIGHT_AXES[name] for name in WEIGHT_AXES}
    return {name: NamedSharding(mesh, PartitionSpec(*axis)) for name, axis in axes.items()}

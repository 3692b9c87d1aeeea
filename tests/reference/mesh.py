"""The same reference, trained on one device or on a mesh: with GSPMD, XLA inserts the collectives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reference import ablations, adafactor, adamw, compiled, lion, palm

OPTIMIZERS = {"adafactor": adafactor, "adamw": adamw, "lion": lion}


def make_mesh(pods: int, data: int, model: int) -> Mesh:
    """A mesh of the first devices, the model axis counting fastest."""
    devices = np.array(jax.devices()[: pods * data * model])
    return Mesh(devices.reshape(pods, data, model), ("pod", "data", "model"))


def train(
    weights, inputs, targets, shape: palm.Shape, optimizer: str, mesh: Mesh | None = None, departures=None, **settings
):
    """Trains from ``weights`` on batches int32 [steps, B, S]; a negative target is not a token.

    ``departures``: switches of a network that is not PaLM, for ``ablations.logits``; only without a mesh.

    Returns:
        losses, cross-entropies and gradient norms of the steps, the first step's gradients, and the last weights.
    """
    method = OPTIMIZERS[optimizer]
    sharding = batch_sharding = None
    if mesh is not None:
        sharding, batch_sharding = palm.shardings(shape, mesh), NamedSharding(mesh, PartitionSpec(palm.BATCH))

    def step(weights, state, inputs, targets, k):
        def objective(weights):
            mask = jnp.asarray(targets >= 0, jnp.float32)
            if departures:
                z = ablations.logits(weights, inputs, shape, **departures)
                return palm.loss_of(z, jnp.maximum(targets, 0), mask, shape)
            return palm.loss(weights, inputs, jnp.maximum(targets, 0), mask, shape, mesh=mesh)

        (loss, cross_entropy), gradients = jax.value_and_grad(objective, has_aux=True)(weights)
        weights, state, norm = method.update(weights, gradients, state, k, **settings)
        return weights, state, gradients, (loss, cross_entropy, norm)

    full = {name: jnp.asarray(weight) for name, weight in weights.items()}
    weights = jax.device_put(full, sharding)
    state = method.init(full)
    state_sharding = sharding and dict.fromkeys(state, sharding)
    state = jax.device_put(state, state_sharding)
    out = sharding and (sharding, state_sharding, sharding, NamedSharding(mesh, PartitionSpec()))
    step = compiled(step, out_shardings=out)
    curve, first = [], None
    for k in range(len(inputs)):
        batch = (jax.device_put(part[k], batch_sharding) for part in (inputs, targets))
        weights, state, gradients, numbers = step(weights, state, *batch, jnp.float32(k + 1))
        curve.append([float(number) for number in numbers])
        if k == 0:
            first = {name: np.asarray(gradient) for name, gradient in gradients.items()}
    if mesh is not None:
        for name, weight in weights.items():  # it was sharded, not replicated
            assert weight.addressable_shards[0].data.shape == sharding[name].shard_shape(weight.shape), name
    return np.array(curve).T, first, {name: np.asarray(weight) for name, weight in weights.items()}

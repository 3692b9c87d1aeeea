"""A PaLM as one of twice the width with layer norms, for packages that have no other norm.

A layer norm takes the mean off, which a PaLM's activations x do have. But [x, -x] has none, its variance is the mean
square of x, and so its layer norm is [n, -n], n being PaLM's norm of x. Therefore::

    embedding, and what blocks add   c [E, -E]              so that the activations stay c [x, -x]
    scale of a block's norm          [1 + scale, 0]         so that kernels see the first half alone
    kernels in                       [W, 0]
    scale before the logits          [1 / (c sqrt(D)), 0]   PaLM's factor, and c taken back

With c = sqrt(1e-5 / 1e-6), PyTorch's epsilon acts as PaLM's. It is the same function; in float32, to rounding.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mindspore_palm.convert.model import Model, require
from mindspore_palm.settings import model_config

EPSILON = 1e-5  # of PyTorch's layer norm


def widen(model: Model) -> Model:
    """The same function with layer norms, in twice the width.

    Raises:
        UserError: the model is not a PaLM with its own norms.
    """
    config, weights = model.config, model.weights
    require(config, "--widen", supported=("norm_epsilon", "xpos_base"))
    switches = {"norm": "layer_norm", "norm_epsilon": EPSILON, "norm_scale": "around_one"}
    sizes = config.model_dump(exclude={"preset"}) | {"d_model": 2 * config.d_model}
    wide = model_config(sizes | switches | {"final_norm_scale": True, "scaled_logits": False}, "--widen")
    c = np.float32(np.sqrt(EPSILON / config.norm_epsilon))
    nothing = np.zeros(config.d_model, np.float32)
    factor = np.full(config.d_model, 1 / (c * np.sqrt(config.d_model)), np.float32)
    widened = {"final_norm.scale": np.concatenate([factor, nothing])}
    for name, array in weights.items():
        if name.endswith("norm.scale"):
            widened[name] = np.concatenate([1 + array, nothing])
        elif name.endswith((".q_wi", ".kv")):
            widened[name] = np.concatenate([array, np.zeros_like(array)])
        else:
            widened[name] = np.concatenate([c * array, -c * array], axis=1)
    return dataclasses.replace(model, config=wide, weights=widened)

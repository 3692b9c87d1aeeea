"""Widening: the same function as a model of twice the width with layer norms, for packages that have no other norm.

A layer norm subtracts the mean, and a PaLM's activations x have one. But [x, -x] has mean zero, and its variance is the
mean square of x. So its layer norm is [n, -n], where n is PaLM's norm of x. Therefore::

    embedding, and outputs of blocks   c [E, -E]              activations stay c [x, -x]
    scale of a block's norm            [1 + scale, 0]         kernels see the first half only
    input kernels                      [W, 0]
    scale before the logits            [1 / (c sqrt(D)), 0]   PaLM's factor, with c divided out

With c = sqrt(1e-5 / 1e-6), PyTorch's epsilon acts as PaLM's. The function is the same, up to rounding in float32.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mindspore_palm.convert.model import Model, require
from mindspore_palm.settings import model_config

EPSILON = 1e-5  # default of PyTorch's layer norm


def widen(model: Model) -> Model:
    """The model in twice the width with layer norms; it computes the same.

    Raises:
        UserError: the model does not have PaLM's norms.
    """
    config, weights = model.config, model.weights
    require(config, "--widen", supported=("norm_epsilon", "xpos_base"))
    switches = {"norm": "layer_norm", "norm_epsilon": EPSILON, "norm_scale": "around_one"}
    sizes = config.model_dump(exclude={"preset"}) | {"d_model": 2 * config.d_model}
    wide = model_config(sizes | switches | {"final_norm_scale": True, "scaled_logits": False}, "--widen")
    c = np.float32(np.sqrt(EPSILON / config.norm_epsilon))
    zeros = np.zeros(config.d_model, np.float32)
    factor = np.full(config.d_model, 1 / (c * np.sqrt(config.d_model)), np.float32)
    widened = {"final_norm.scale": np.concatenate([factor, zeros])}
    for name, array in weights.items():
        if name.endswith("norm.scale"):
            widened[name] = np.concatenate([1 + array, zeros])
        elif name.endswith((".q_wi", ".kv")):
            widened[name] = np.concatenate([array, np.zeros_like(array)])
        else:
            widened[name] = np.concatenate([c * array, -c * array], axis=1)
    return dataclasses.replace(model, config=wide, weights=widened)

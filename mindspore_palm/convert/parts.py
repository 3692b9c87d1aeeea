"""Splits a block's fused kernels into those of other PaLMs, and fuses them again: elements only change places."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mindspore_palm.config import PaLMConfig

PARTS = ("q", "k", "v", "gate", "up", "o", "down")


def split_kernels(config: PaLMConfig, weights: Mapping[str, np.ndarray], block: int) -> dict[str, np.ndarray]:
    """The kernels of one block, [in, out]: q [D, H*K], k and v [D, K], gate and up [D, F], o [H*K, D], down [F, D]."""
    d, h, m = config.d_model, config.heads, config.mlp_per_head
    q_wi = weights[f"blocks.{block}.q_wi"].reshape(d, h, config.head_dim + 2 * m)
    o_wo = weights[f"blocks.{block}.o_wo"].reshape(h, config.head_dim + m, d)
    q, gate, up = np.split(q_wi, [config.head_dim, config.head_dim + m], axis=-1)
    k, v = np.split(weights[f"blocks.{block}.kv"], 2, axis=-1)
    o, down = np.split(o_wo, [config.head_dim], axis=1)
    by_column = (part.reshape(d, -1) for part in (q, k, v, gate, up))
    return dict(zip(PARTS, [*by_column, o.reshape(-1, d), down.reshape(-1, d)], strict=True))


def fuse_kernels(config: PaLMConfig, parts: Mapping[str, np.ndarray], block: int) -> dict[str, np.ndarray]:
    """The fused kernels of one block from their parts, by the names of the checkpoint format."""
    d, h = config.d_model, config.heads
    q_wi = [parts[name].reshape(d, h, -1) for name in ("q", "gate", "up")]
    o_wo = [parts[name].reshape(h, -1, d) for name in ("o", "down")]
    return {
        f"blocks.{block}.q_wi": np.concatenate(q_wi, axis=-1).reshape(d, -1),
        f"blocks.{block}.kv": np.concatenate([parts["k"], parts["v"]], axis=-1),
        f"blocks.{block}.o_wo": np.concatenate(o_wo, axis=1).reshape(-1, d),
    }

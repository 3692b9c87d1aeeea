"""PaLM in NumPy: checks converted files of formats that have no code of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from mindspore_palm.config import PaLMConfig

NUMPY = "NumPy code of this package"


def logits(
    config: PaLMConfig,
    tokens: np.ndarray,
    embedding: np.ndarray,
    blocks: Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]],
    final_scale: np.ndarray | None,
) -> np.ndarray:
    """Logits of PaLM: int32 [B, S] to float32 [B, S, vocab_size].

    Args:
        config: sizes, and the switches of norm, logits and xPos; the block is PaLM's.
        tokens: int32 [B, S].
        embedding: [V, D].
        blocks: scale [D] of the norm and kernels of each block, named as by ``parts.split_kernels``; also
            ``frequencies`` [K/2] of the rotation, if a file holds them.
        final_scale: scale [D] of the norm before the logits; None for a norm without one.
    """
    x = embedding[tokens]
    for scale, kernels in blocks:
        y = _norm(config, x, scale)
        gate = y @ kernels["gate"]
        mlp = gate / (1 + np.exp(-gate)) * (y @ kernels["up"])
        heads = (y @ kernels["q"]).reshape(*y.shape[:2], config.heads, config.head_dim)
        frequencies = kernels.get("frequencies", 10000.0 ** (-np.arange(config.head_dim // 2) * 2 / config.head_dim))
        q = _rotate(heads, frequencies, config.xpos_base)
        k = _rotate((y @ kernels["k"])[:, :, None], frequencies, -config.xpos_base)[:, :, 0]
        x = x + mlp @ kernels["down"] + _attention(q, k, y @ kernels["v"]) @ kernels["o"]
    y = _norm(config, x, final_scale)
    factor = np.float32(config.d_model**-0.5 if config.scaled_logits else 1)
    return (y * factor) @ embedding[: config.vocab_size].T


def _norm(config: PaLMConfig, x: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    if config.norm == "layer_norm":
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(config.norm_epsilon))
    if scale is None:
        return y
    return y * (scale if config.norm_scale == "around_one" else 1 + scale)


def _rotate(x: np.ndarray, frequencies: np.ndarray, xpos_base: float) -> np.ndarray:
    """Rotates [B, S, H, K] by position: elements i and i + K/2 are a complex number, which xPos also scales."""
    half, position = x.shape[-1] // 2, np.arange(x.shape[1])
    rotations = np.exp(1j * np.outer(position, frequencies.astype(np.float64)))
    if xpos_base:
        share = np.arange(half) / half
        rotations *= ((share + 0.4) / 1.4) ** (position / xpos_base)[:, None]
    rotated = (x[..., :half] + 1j * x[..., half:]) * rotations[:, None]
    return np.concatenate([rotated.real, rotated.imag], axis=-1).astype(np.float32)


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal multi-query attention: q [B, S, H, K], k and v [B, S, K] to [B, S, H*K]."""
    scores = np.einsum("bqhk,btk->bhqt", q, k) / np.float32(np.sqrt(q.shape[-1]))
    scores = np.where(np.tri(q.shape[1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqt,btk->bqhk", weights, v).reshape(*q.shape[:2], -1).astype(np.float32)

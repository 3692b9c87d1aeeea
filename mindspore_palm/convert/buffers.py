"""Checks of the buffers in a PyTorch file: they decide what the network computes, so they must be PaLM's."""

from __future__ import annotations

import numpy as np

from mindspore_palm.errors import UserError
from mindspore_palm.model.rope import BASE

CLOSE = 2e-6  # relative tolerance: float32 rounding of different formulas
HALF_DTYPES = {"bfloat16": (16, 2**-8), "float16": (13, 2**-10)}  # bits missing from float32, relative rounding


def check_frequencies(inv_freq: np.ndarray, head_dim: int, where: str) -> str:
    """Checks the frequencies of the rotation.

    Args:
        inv_freq: the buffer, [K/2].
        head_dim: K.
        where: file and name, for the message.

    Returns:
        The dtype that they are rounded to; empty if they are not rounded.

    Raises:
        UserError: they are not PaLM's.
    """
    expected = BASE ** (-np.arange(0, head_dim, 2) / head_dim)
    rounded = _rounding(inv_freq, expected)
    if rounded is None:
        raise UserError(
            f"{where} {_difference(inv_freq, expected)}, and PaLM rotates by the frequencies of base {BASE:,.0f}: "
            "the model would be a different one"
        )
    return rounded


def check_decay(scale: np.ndarray, head_dim: int, where: str) -> str:
    """Checks the bases of xPos's powers, ``scale`` [K/2], as ``check_frequencies`` does."""
    rounded = _rounding(scale, _decay(head_dim))
    if rounded is None:
        raise UserError(
            f"{where} is not (2i + 0.4 K) / 1.4 K of xPos with K = {head_dim}: the model would be a different one"
        )
    return rounded


def check_cache(leaf: str, cache: np.ndarray, head_dim: int, xpos_base: float, where: str) -> None:
    """Checks a buffer that the network computes from its sizes: a causal mask, or rotations of positions.

    Raises:
        UserError: it is not what the network would compute.
    """
    length = cache.shape[0] if cache.ndim else 0
    if leaf == "mask":
        expected = ~np.tri(length, dtype=bool)
        is_expected = cache.dtype == bool and np.array_equal(cache, expected)
        problem = "not a causal mask (true above the diagonal)"
    else:
        exponent = np.arange(0, head_dim, 2) / head_dim
        half = np.outer(np.arange(length), BASE**-exponent)
        if leaf == "pos_emb_scale":
            half = _decay(head_dim) ** ((np.arange(length) - length // 2) / (xpos_base or np.inf))[:, None]
        expected = np.concatenate([half, half], axis=-1)
        is_expected = cache.shape == expected.shape and np.allclose(cache, expected, rtol=1e-5, atol=1e-5)
        problem = "not what PaLM's rotation has at these positions"
    if not is_expected:
        raise UserError(f"{where} is {problem}; a cache may be missing from the file, but must not differ")


def _decay(head_dim: int) -> np.ndarray:
    """Bases of xPos's powers: (2i + 0.4 K) / 1.4 K, float64 [K/2]."""
    return (np.arange(0, head_dim, 2) + 0.4 * head_dim) / (1.4 * head_dim)


def _rounding(array: np.ndarray, expected: np.ndarray) -> str | None:
    """The dtype to which ``expected`` was rounded to give ``array``: empty for float32, None if it was not."""
    if array.shape != expected.shape:
        return None
    if np.allclose(array, expected, rtol=CLOSE, atol=0):
        return ""
    for name, (missing_bits, step) in HALF_DTYPES.items():
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        if not np.any(bits & ((1 << missing_bits) - 1)) and np.allclose(array, expected, rtol=step, atol=0):
            return name
    return None


def _difference(inv_freq: np.ndarray, expected: np.ndarray) -> str:
    """The difference of frequencies, for a message: their base, or the worst of them."""
    if inv_freq.shape != expected.shape:
        return f"is {list(inv_freq.shape)}, not {list(expected.shape)}"
    if len(inv_freq) > 1 and np.all(inv_freq > 0):
        base = float(inv_freq[1]) ** (-float(len(inv_freq)))
        if np.allclose(inv_freq, base ** (-np.arange(len(inv_freq)) / len(inv_freq)), rtol=1e-4, atol=0):
            return f"has base {base:,.6g}"
    worst = int(np.argmax(np.abs(inv_freq - expected)))
    return f"has {inv_freq[worst]:.6g} at {worst} instead of {expected[worst]:.6g}"

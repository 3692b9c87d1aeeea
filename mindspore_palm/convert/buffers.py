"""Buffers that a PyTorch file holds beside its weights: they decide what it computes, so they must be PaLM's."""

from __future__ import annotations

import numpy as np

from mindspore_palm.errors import UserError
from mindspore_palm.model.rope import BASE

CLOSE = 2e-6  # relative: float32, computed in one way or another
HALVES = {"bfloat16": (16, 2**-8), "float16": (13, 2**-10)}  # bits of a float32 that they lack, and a rounding


def check_frequencies(found: np.ndarray, head_dim: int, where: str) -> str:
    """Frequencies of the rotation, ``inv_freq`` [K/2].

    Returns:
        Empty, or the type that they are rounded to.

    Raises:
        UserError: they are not those of PaLM.
    """
    expected = BASE ** (-np.arange(0, head_dim, 2) / head_dim)
    rounded = _compare(found, expected)
    if rounded is None:
        raise UserError(
            f"{where} {_described(found, expected)}, and PaLM here rotates by the frequencies of base {BASE:,.0f}: "
            "the model would be another one"
        )
    return rounded


def check_decay(found: np.ndarray, head_dim: int, where: str) -> str:
    """Checks the bases of xPos's powers, ``scale`` [K/2], as ``check_frequencies`` does."""
    rounded = _compare(found, _decay(head_dim))
    if rounded is None:
        raise UserError(f"{where} is not (2i + 0.4 K) / 1.4 K of xPos with K = {head_dim}: the model would be another")
    return rounded


def check_cache(leaf: str, found: np.ndarray, head_dim: int, xpos_base: float, where: str) -> None:
    """Checks values that a network once computed and keeps: a causal mask, rotations of positions.

    Raises:
        UserError: it is not what the network would compute.
    """
    length = found.shape[0] if found.ndim else 0
    if leaf == "mask":
        expected = ~np.tri(length, dtype=bool)
        is_expected = found.dtype == bool and np.array_equal(found, expected)
        said = "no causal mask (true above the diagonal)"
    else:
        exponent = np.arange(0, head_dim, 2) / head_dim
        half = np.outer(np.arange(length), BASE**-exponent)
        if leaf == "pos_emb_scale":
            half = _decay(head_dim) ** ((np.arange(length) - length // 2) / (xpos_base or np.inf))[:, None]
        expected = np.concatenate([half, half], axis=-1)
        is_expected = found.shape == expected.shape and np.allclose(found, expected, rtol=1e-5, atol=1e-5)
        said = "not what PaLM's rotation has at these positions"
    if not is_expected:
        raise UserError(f"{where} is {said}; a cache may be left out of the file, but not be another one")


def _decay(head_dim: int) -> np.ndarray:
    """Bases of xPos's powers: (2i + 0.4 K) / 1.4 K, float64 [K/2]."""
    return (np.arange(0, head_dim, 2) + 0.4 * head_dim) / (1.4 * head_dim)


def _compare(found: np.ndarray, expected: np.ndarray) -> str | None:
    """Empty for the same numbers, the type for the same that are rounded to it, None for others."""
    if found.shape != expected.shape:
        return None
    if np.allclose(found, expected, rtol=CLOSE, atol=0):
        return ""
    for name, (lacking, step) in HALVES.items():
        bits = np.ascontiguousarray(found, np.float32).view(np.uint32)
        if not np.any(bits & ((1 << lacking) - 1)) and np.allclose(found, expected, rtol=step, atol=0):
            return name
    return None


def _described(found: np.ndarray, expected: np.ndarray) -> str:
    """Frequencies in words: their base, or the worst of them."""
    if found.shape != expected.shape:
        return f"is {list(found.shape)}, not {list(expected.shape)}"
    if len(found) > 1 and np.all(found > 0):
        base = float(found[1]) ** (-float(len(found)))
        if np.allclose(found, base ** (-np.arange(len(found)) / len(found)), rtol=1e-4, atol=0):
            return f"has base {base:,.6g}"
    worst = int(np.argmax(np.abs(found - expected)))
    return f"has {found[worst]:.6g} at {worst} instead of {expected[worst]:.6g}"

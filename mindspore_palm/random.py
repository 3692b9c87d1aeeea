"""Pseudo-random numbers as functions of a name and an index: nothing is stored, and no draw depends on another.

Names are hashed to the keys of Philox streams (initial weights, dropout masks) and of permutations (the order of
training sequences, the examples of few-shot prompts).
"""

from __future__ import annotations

import hashlib
from typing import overload

import numpy as np

ROUNDS = 8
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: spreads the round keys
MASK = 2**64 - 1


def key64(name: str) -> int:
    """64-bit key of a name, uniform over range(2**64): the first bytes of its BLAKE2b hash, big-endian."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def philox(name: str) -> np.random.Philox:
    """Philox stream of a name ("Parallel random numbers: as easy as 1, 2, 3", 2011): it can start at any element."""
    key = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(key, "little"))


@overload
def permute(index: int, size: int, key: int) -> int: ...
@overload
def permute(index: np.ndarray, size: int, key: int) -> np.ndarray: ...
def permute(index: int | np.ndarray, size: int, key: int) -> int | np.ndarray:
    """Image of ``index`` under the pseudo-random permutation of range(size) that ``key`` selects.

    A Feistel network (Luby and Rackoff, 1988) permutes the smallest power of four that is at least ``size``. A value
    outside range(size) goes through the network again until it is inside: cycle walking (Black and Rogaway, "Ciphers
    with arbitrary finite domains", 2002). That takes fewer than four passes through the network on average.

    Args:
        index: one index, or an array of any shape, each in range(size).
        size: number of elements, at most 2**62.
        key: any integer; only its lowest 64 bits matter.

    Returns:
        An int for an int, else an int64 array of the same shape.

    Raises:
        ValueError: ``size`` or an index is out of range.
    """
    if not 1 <= size <= 2**62:
        raise ValueError(f"size = {size} is not between 1 and 2**62")
    indices = np.asarray(index, np.int64)
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        raise ValueError(f"an index is outside range({size})")
    half = max(1, ((size - 1).bit_length() + 1) // 2)  # bits of each half
    keys = [_mix_int((key + (r + 1) * GOLDEN) & MASK) for r in range(ROUNDS)]
    values = _feistel(indices.reshape(-1).astype(np.uint64), half, keys)
    while (outside := np.flatnonzero(values >= size)).size:
        values[outside] = _feistel(values[outside], half, keys)
    result = values.astype(np.int64).reshape(indices.shape)
    return result if isinstance(index, np.ndarray) else int(result)


def _feistel(values: np.ndarray, half: int, keys: list[int]) -> np.ndarray:
    low_bits = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & low_bits
    for key in keys:
        left, right = right, left ^ (_mix(right ^ np.uint64(key)) & low_bits)
    return (left << np.uint64(half)) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """Finalizer of splitmix64 (Steele, Lea and Flood, 2014): every input bit affects every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # arrays wrap around at 2**64
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _mix_int(value: int) -> int:
    return int(_mix(np.array([value], np.uint64))[0])

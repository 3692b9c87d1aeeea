"""Initial weights as a function of (seed, name, index), so that each device draws only its shard (MS-15).

Element i of a weight depends on the seed, the weight's name and i only: a counter-based generator (Philox, "Parallel
random numbers: as easy as 1, 2, 3", 2011) can start at any i.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from mindspore import Parameter

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.weights import Weight, weights
from mindspore_palm.parallel.weights import make_weight
from mindspore_palm.random import philox

WORDS = 4  # 64-bit words that Philox returns per step of its counter


def standard_normal(seed: int, name: str, start: int, count: int) -> np.ndarray:
    """Elements start .. start + count - 1 of the N(0, 1) sequence of (seed, name): float32 [count]."""
    generator = philox(f"{seed}:{name}")
    generator.advance(start // WORDS)
    skip = start % WORDS
    words = generator.random_raw(skip + count)[skip:]
    # Box-Muller transform of the two halves of a word; adding 0.5 keeps the logarithm's argument above zero
    radius = np.sqrt(-2.0 * np.log(((words >> np.uint64(32)) + 0.5) * 2.0**-32))
    return (radius * np.cos((words & np.uint64(0xFFFFFFFF)) * (2.0 * np.pi * 2.0**-32))).astype(np.float32)


def draw(seed: int, name: str, shape: Sequence[int], window: Sequence[slice] | None = None) -> np.ndarray:
    """N(0, 1) values of a weight, or of a window of it: float32.

    Args:
        seed: of the run.
        name: of the weight.
        shape: of the unsharded weight.
        window: a slice of step 1 for each axis; None draws the full weight.
    """
    window = tuple(window or (slice(None),) * len(shape))
    ranges = [range(*part.indices(size)) for part, size in zip(window, shape, strict=True)]
    sizes = [len(part) for part in ranges]
    full = len(shape)  # the window takes the axes from here on in full, so their elements are contiguous
    while full > 1 and sizes[full - 1] == shape[full - 1]:
        full -= 1
    run = int(np.prod(sizes[full - 1 :], dtype=np.int64))
    strides = [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]
    first = ranges[full - 1].start * strides[full - 1]
    out = np.empty((int(np.prod(sizes[: full - 1], dtype=np.int64)), run), np.float32)
    for row, index in enumerate(np.ndindex(*sizes[: full - 1])):
        start = first + sum((ranges[a].start + i) * strides[a] for a, i in enumerate(index))
        out[row] = standard_normal(seed, name, start, run)
    return out.reshape(sizes)


def initial_values(weight: Weight, seed: int, window: Sequence[slice] | None = None) -> np.ndarray:
    """Initial values of a weight, or of a window of it (section 5): N(0, 1/fan_in), or a constant: float32."""
    if not weight.fan_in:
        return np.full(weight.shape, weight.constant, np.float32)[tuple(window or ())]
    values, std = draw(seed, weight.name, weight.shape, window), weight.std
    if len(std) > 1 and window:
        std = std[window[0]]
    return values if (std == 1).all() else values * std


def initial_weight(config: PaLMConfig, seed: int, name: str, window: Sequence[slice] | None = None) -> np.ndarray:
    """``initial_values`` of a weight by name."""
    return initial_values(next(weight for weight in weights(config) if weight.name == name), seed, window)


def initial_parameter(weight: Weight, seed: int) -> Parameter:
    """A weight as a Parameter on the current layout, with its initial values."""
    draw_window = partial(initial_values, weight, seed)
    return make_weight(weight.name, weight.shape, weight.axes, draw_window, weight.fully_sharded, weight.parts)

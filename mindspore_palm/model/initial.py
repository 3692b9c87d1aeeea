"""Initial weights, drawn from (seed, name) over the global shape, so that any slice can be drawn alone (MS-15).

Element i of a weight depends on nothing but the seed, the weight's name and i: a counter-based generator (Philox,
"Parallel random numbers: as easy as 1, 2, 3", 2011) starts at any i.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from mindspore_palm.config import PaLMConfig
from mindspore_palm.parallel.axes import Layout
from mindspore_palm.parallel.placement import Placement

WORDS = 4  # 64-bit words that Philox gives for one step of its counter


def standard_normal(seed: int, name: str, start: int, count: int) -> np.ndarray:
    """Elements start .. start + count of the endless row of N(0, 1) that (seed, name) names: float32 [count]."""
    key = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()
    generator = np.random.Philox(key=int.from_bytes(key, "little"))
    generator.advance(start // WORDS)
    skip = start % WORDS
    words = generator.random_raw(skip + count)[skip:]
    # Box and Muller's transform of the two halves of a word; the half makes 0 impossible under the logarithm
    radius = np.sqrt(-2.0 * np.log(((words >> np.uint64(32)) + 0.5) * 2.0**-32))
    return (radius * np.cos((words & np.uint64(0xFFFFFFFF)) * (2.0 * np.pi * 2.0**-32))).astype(np.float32)


def draw(seed: int, name: str, shape: Sequence[int], window: Sequence[slice] | None = None) -> np.ndarray:
    """N(0, 1) for a weight of a global shape, or for a window of it: float32.

    Args:
        seed: of the run.
        name: of the weight.
        shape: the global shape.
        window: a slice of step 1 for every axis; None draws all of it. Nothing outside of it is drawn.
    """
    window = tuple(window or (slice(None),) * len(shape))
    ranges = [range(*part.indices(size)) for part, size in zip(window, shape, strict=True)]
    sizes = [len(part) for part in ranges]
    whole = len(shape)  # axes from here on are taken whole, so their elements lie one after the other
    while whole > 1 and sizes[whole - 1] == shape[whole - 1]:
        whole -= 1
    run = int(np.prod(sizes[whole - 1 :], dtype=np.int64))
    strides = [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]
    first = ranges[whole - 1].start * strides[whole - 1]
    out = np.empty((int(np.prod(sizes[: whole - 1], dtype=np.int64)), run), np.float32)
    for row, index in enumerate(np.ndindex(*sizes[: whole - 1])):
        start = first + sum((ranges[a].start + i) * strides[a] for a, i in enumerate(index))
        out[row] = standard_normal(seed, name, start, run)
    return out.reshape(sizes)


def weight_shapes(config: PaLMConfig) -> dict[str, tuple[int, ...]]:
    """Name and global shape of every drawn weight: the checkpoint format less norm scales, which start as constants."""
    per_head_in = config.head_dim + config.mlp_inputs * config.mlp_per_head
    per_head_out = config.head_dim + config.mlp_per_head
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.padded_vocab, config.d_model)}
    for i in range(config.layers):
        shapes[f"blocks.{i}.q_wi"] = (config.d_model, config.heads * per_head_in)
        shapes[f"blocks.{i}.kv"] = (config.d_model, 2 * config.kv_heads * config.head_dim)
        shapes[f"blocks.{i}.o_wo"] = (config.heads * per_head_out, config.d_model)
    return shapes


def weight_axes(config: PaLMConfig) -> dict[str, tuple[str, ...]]:
    """Name and logical axes of every weight, norm scales included."""
    norms = ("norm",) if config.parallel else ("norm", "mlp_norm")
    axes: dict[str, tuple[str, ...]] = {"embedding": ("vocab", "embed")}
    if config.final_norm_scale:
        axes["final_norm.scale"] = ("embed",)
    for i in range(config.layers):
        axes |= {f"blocks.{i}.{norm}.scale": ("embed",) for norm in norms}
        axes[f"blocks.{i}.q_wi"] = ("embed", "heads")
        axes[f"blocks.{i}.kv"] = ("embed", "per_head")
        axes[f"blocks.{i}.o_wo"] = ("heads", "embed")
    return axes


def placements(config: PaLMConfig, layout: Layout) -> list[Placement]:
    """Where every weight lies on a layout, in the order of the network."""
    shapes = weight_shapes(config)
    return [
        Placement(name, shapes.get(name, (config.d_model,)), axes, layout, fully_sharded=name in shapes)
        for name, axes in weight_axes(config).items()
    ]


def initial_weight(config: PaLMConfig, seed: int, name: str, window: Sequence[slice] | None = None) -> np.ndarray:
    """A weight as PaLM starts it (section 5): N(0, 1) for the embedding, N(0, 1/fan_in) for kernels.

    The fan-in of a fused kernel is that of its parts, as if each were a kernel of its own: the columns of q_wi and kv
    all have d_model inputs, but of o_wo the attention rows of a head add up with those of all heads, heads * head_dim
    inputs, and its mlp rows with d_ff.
    """
    shape = weight_shapes(config)[name]
    values = draw(seed, name, shape, window)
    if name == "embedding":
        return values
    if not name.endswith("o_wo"):
        return values * np.float32(config.d_model**-0.5)
    attention = np.arange(shape[0]) % (config.head_dim + config.mlp_per_head) < config.head_dim
    std = np.where(attention, (config.heads * config.head_dim) ** -0.5, config.d_ff**-0.5).astype(np.float32)
    return values * std[window[0] if window else slice(None), None]

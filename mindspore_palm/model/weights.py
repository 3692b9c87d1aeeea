"""The table of weights: name, shape, logical axes, fan-in and sharding of each, norm scales included.

Initial values, placement, memory, checkpoints, converters and LoRA read it. The names are the checkpoint format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mindspore_palm.config import PaLMConfig
from mindspore_palm.parallel.axes import Axes, Layout
from mindspore_palm.parallel.placement import Placement

POSITIONS = "positions"  # the table of learned positions, if the network has one
KERNELS = ("q_wi", "kv", "o_wo")  # the matrices of a block, which LoRA adapts


class FanIn(NamedTuple):
    """Rows of a weight that share a fan-in."""

    rows: int
    inputs: int
    """The fan-in: terms of the sum in which these rows take part."""


@dataclass(frozen=True)
class Weight:
    """One weight, unsharded."""

    name: str
    shape: tuple[int, ...]
    axes: Axes
    """Logical axis of each dimension."""
    fan_in: tuple[FanIn, ...] = ()
    """Initial values are N(0, 1/inputs). Several entries repeat down the first axis, as in a kernel that is fused per
    head. Empty for a constant."""
    constant: float = 0.0
    """Initial value of a weight without fan-in."""
    fully_sharded: bool = True
    """Whether the first dimension may be sharded over data as well."""
    tied: bool = False
    """Whether the first and the last layer use it. Stages that share a weight do not shard it over data (MS-61)."""
    parts: int = 1
    """Parts of the last dimension, each sharded by itself."""
    layer: int = 0
    """The layer whose stage holds the weight; the table is with layer 0, and the final norm with the last."""

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of the initial values: float32 [1, 1], or [rows, 1] if it differs by row."""
        stds = np.concatenate([np.full(part.rows, part.inputs**-0.5, np.float32) for part in self.fan_in])
        if len(self.fan_in) > 1:
            return np.tile(stds, self.shape[0] // len(stds))[:, None]
        return stds[:1, None]

    def placement(self, layout: Layout) -> Placement:
        """The shard that each device of a layout holds."""
        fully_sharded = self.fully_sharded and not (self.tied and layout.mesh.stages > 1)
        stage = layout.stage(self.layer)
        return Placement(self.name, self.shape, self.axes, layout, fully_sharded, self.parts, stage)


def sizes_in(config: PaLMConfig) -> tuple[int, ...]:
    """Columns per head in ``q_wi``: q, then each input of the mlp."""
    return (config.head_dim, *(config.mlp_per_head for _ in range(config.mlp_inputs)))


def sizes_out(config: PaLMConfig) -> tuple[int, int]:
    """Rows per head in ``o_wo``: attention, then mlp."""
    return config.head_dim, config.mlp_per_head


def weights(config: PaLMConfig) -> tuple[Weight, ...]:
    """All weights of a network, in the order of its checkpoints."""
    return tuple(_weights(config))


def _weights(config: PaLMConfig) -> Iterator[Weight]:
    d, heads = config.d_model, config.heads
    mlp_rows, attention_rows = config.mlp_per_head, config.head_dim
    from_attention, from_mlp = FanIn(attention_rows, heads * config.head_dim), FanIn(mlp_rows, config.d_ff)
    norms = ("norm",) if config.block == "parallel" else ("norm", "mlp_norm")
    neutral = config.neutral_scale

    def scale(name: str, layer: int) -> Weight:
        return Weight(f"{name}.scale", (d,), ("embed",), constant=neutral, fully_sharded=False, layer=layer)

    yield Weight("embedding", (config.padded_vocab, d), ("vocab", "embed"), (FanIn(config.padded_vocab, 1),), tied=True)
    if config.longest:
        rows = config.longest
        yield Weight(POSITIONS, (rows, d), ("one", "embed"), (FanIn(rows, 1),), fully_sharded=False)
    if config.final_norm_scale:
        yield scale("final_norm", config.layers - 1)
    for i in range(config.layers):
        block, from_d = f"blocks.{i}", (FanIn(d, d),)
        yield from (scale(f"{block}.{norm}", i) for norm in norms)
        yield Weight(f"{block}.q_wi", (d, heads * sum(sizes_in(config))), ("embed", "heads"), from_d, layer=i)
        kv = (d, 2 * config.kv_heads * config.head_dim)
        if config.attention == "multi_query":
            yield Weight(f"{block}.kv", kv, ("embed", "per_head"), from_d, layer=i)
        else:  # keys and values are each sharded by head
            yield Weight(f"{block}.kv", kv, ("embed", "heads"), from_d, parts=2, layer=i)
        # attention rows are summed over all heads, mlp rows over all of d_ff: two fan-ins
        o_wo = (heads * sum(sizes_out(config)), d)
        yield Weight(f"{block}.o_wo", o_wo, ("heads", "embed"), (from_attention, from_mlp), layer=i)


def placements(config: PaLMConfig, layout: Layout) -> list[Placement]:
    """Placement of every weight on a layout."""
    return [weight.placement(layout) for weight in weights(config)]


def weight_shapes(config: PaLMConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that starts at random: all except norm scales."""
    return {weight.name: weight.shape for weight in weights(config) if weight.fan_in}


def weight_axes(config: PaLMConfig) -> dict[str, Axes]:
    """Name and logical axes of every weight, norm scales included."""
    return {weight.name: weight.axes for weight in weights(config)}

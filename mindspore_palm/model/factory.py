"""The Cells for a configuration and the current layout. No other module of the network imports an ablation."""

from __future__ import annotations

from collections.abc import Mapping

from mindspore import Parameter, nn

from mindspore_palm.config import PaLMConfig
from mindspore_palm.devices import DEVICES
from mindspore_palm.model.ablations import MultiHeadAttention, ParallelBlock, SerialBlock
from mindspore_palm.model.attention import (
    FusedAttention,
    HeadsFirstAttention,
    MultiQueryAttention,
    PlainAttention,
    PositionsFirstAttention,
)
from mindspore_palm.model.block import Block
from mindspore_palm.model.fused import FusedBlock, usable
from mindspore_palm.parallel.axes import current_layout


def make_block(config: PaLMConfig, weights: Mapping[str, Parameter], attention: nn.Cell | None = None) -> nn.Cell:
    """PaLM's block, or an ablation of it.

    Args:
        config: the sizes and switches.
        weights: the block's Parameters, by their names within the block, such as ``q_wi`` and ``norm.scale``.
        attention: None for attention over full sequences.
    """
    if attention is None and usable(config):
        return FusedBlock(config, weights, make_attention(config))
    attention = make_attention(config) if attention is None else attention
    if config.block == "serial":
        return SerialBlock(config, weights, attention)
    is_palms = config.mlp == "swiglu" and config.attention == "multi_query"
    return (Block if is_palms else ParallelBlock)(config, weights, attention)


def make_attention(config: PaLMConfig) -> nn.Cell:
    """Causal attention over full sequences."""
    if config.attention == "multi_head":
        return MultiHeadAttention(config)
    here = current_layout()
    in_one_op = DEVICES[here.target].fuses_attention(here.compute_dtype, config.head_dim)
    in_one_op = in_one_op and not config.alibi_heads  # whose mask is one for all heads
    return MultiQueryAttention(config, FusedAttention(config) if in_one_op else _plain_attention(config))


def make_cached_attention(config: PaLMConfig) -> MultiHeadAttention | PlainAttention:
    """Attention of new tokens to a cache: a Cell with a method ``attend_cached`` and a ``query_axis``."""
    return MultiHeadAttention(config) if config.attention == "multi_head" else _plain_attention(config)


def _plain_attention(config: PaLMConfig) -> PlainAttention:
    cell = HeadsFirstAttention if current_layout().shards("heads") > 1 else PositionsFirstAttention
    return cell(config.alibi_heads)

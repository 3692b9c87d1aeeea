"""Recomputation: activations that the backward pass computes again instead of storing (section 4 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable

from mindspore import nn

from mindspore_palm.parallel.axes import current_layout


def recompute(blocks: Iterable[nn.Cell], policy: str) -> None:
    """Marks blocks for recomputation, before they are compiled.

    Args:
        blocks: blocks, each with an ``attention``.
        policy: none; attention (scores and attention weights: most of the memory for little work); or block, as in PaLM
            540B: only the input of a block is stored, sharded over the model axis. Sharded weights are then gathered a
            second time (``parallel_settings``).
    """
    if policy == "none":
        return
    for block in blocks:
        if policy == "attention":
            block.attention.recompute()
        else:
            block.recompute(recompute_slice_activation=current_layout().shards("heads") > 1)


def residual_width(d_model: int) -> int:
    """Columns of the residual stream between blocks: D, except where a block's input is stored in shards over model.

    MindSpore shards it by rows, and T need not divide (MS-07; 2,048 tokens by 12 ranks). As [T*m, D/m], its rows do.
    """
    layout = current_layout()
    shards = layout.shards("heads") if layout.recompute == "block" else 1
    return d_model // shards if d_model % shards == 0 else d_model

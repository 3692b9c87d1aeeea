"""What the backward pass computes again instead of keeping (section 4 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable

from mindspore import nn

from mindspore_palm.parallel.axes import current_layout


def recompute(blocks: Iterable[nn.Cell], kind: str) -> None:
    """Marks blocks before they are compiled.

    Args:
        blocks: each with an ``attention``.
        kind: none; attention (scores and weights of the heads, most of the memory for little work); or block, as PaLM
            540B: of a whole block, only the input is kept, and that cut over the model axis, so that every rank keeps
            a part of its own. Sharded weights are then gathered a second time (``parallel_settings``).
    """
    if kind == "none":
        return
    for block in blocks:
        if kind == "attention":
            block.attention.recompute()
        else:
            block.recompute(recompute_slice_activation=current_layout().shards("heads") > 1)


def residual_width(d_model: int) -> int:
    """Columns in which the residual stream goes from block to block.

    D, but where a block's input is kept in slices over the model axis: MindSpore cuts by rows, and T need not divide
    (MS-07; 2,048 tokens by 12 ranks). As [T*m, D/m], the same numbers do.
    """
    layout = current_layout()
    parts = layout.shards("heads") if layout.recompute == "block" else 1
    return d_model // parts if d_model % parts == 0 else d_model

"""What the backward pass computes again instead of keeping (section 4 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable

from mindspore import nn

from mindspore_palm.parallel.axes import current_layout

KINDS = ("none", "attention", "block")


def recompute(blocks: Iterable[nn.Cell], kind: str) -> None:
    """Marks blocks before they are compiled.

    Args:
        blocks: each with an ``attention``.
        kind: none; attention (scores and weights of the heads, most of the memory for little work); or block, as PaLM
            540B: of a whole block, only the input is kept, and that cut over the model axis, so that every rank keeps
            a part of its own. Sharded weights are then gathered a second time.
    """
    if kind == "none":
        return
    for block in blocks:
        if kind == "attention":
            block.attention.recompute()
        elif current_layout().devices == 1:
            block.recompute()
        else:
            cut = current_layout().shards("heads") > 1
            block.recompute(parallel_optimizer_comm_recompute=True, recompute_slice_activation=cut)

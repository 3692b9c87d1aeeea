"""Memory of a training process on one CPU beside its network: MindSpore, and tables that MindSpore's ops keep.

Letters: L layers, T tokens of a micro-batch, S sequence length, D d_model, H heads, K head_dim, V padded vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from mindspore_palm.config import Settings
from mindspore_palm.model import fused as model_in_cpp
from mindspore_palm.optim import fused as update_in_cpp
from mindspore_palm.optim import optimizer_class
from mindspore_palm.parallel import axes
from mindspore_palm.parallel import fused as cpp
from mindspore_palm.parallel.axes import Layout

MINDSPORE = 560_000_000  # resident: Python, what is mapped of MindSpore's libraries, compiling, drawing the chart
GRAPHS = 60_000_000  # more, of a step and an evaluation that are compiled from MindSpore's ops alone
PER_LAYER = 3_000_000  # more, for the graph of each layer
INDEX = 16  # bytes for each element of a broadcast op's result: the positions of its two operands, int64 each


@dataclass(frozen=True)
class InCpp:
    """The parts of a training step that C++ functions compute (MS-69), which need less memory than MindSpore's ops."""

    blocks: bool = False
    loss: bool = False
    update: bool = False


def in_cpp(settings: Settings, layout: Layout) -> InCpp:
    """The parts of a run that are C++ functions on this machine; none on meshes, GPU and Ascend."""
    with axes.layout(layout):
        if not cpp.usable():
            return InCpp()
        has_dropout = bool(settings.finetune.checkpoint and settings.finetune.dropout)
        blocks = model_in_cpp.usable(settings.model) and not has_dropout
        return InCpp(blocks, loss=True, update=update_in_cpp.has_function(optimizer_class(settings.optimizer)))


def process_by_kind(settings: Settings, tokens: int, parts: InCpp) -> dict[str, int]:
    """Bytes that a process takes beside its network, by kind.

    Args:
        settings: of the run.
        tokens: T.
        parts: of the step, that are C++ functions.
    """
    graphs = 0 if parts.blocks else GRAPHS
    mindspore = MINDSPORE + graphs + PER_LAYER * settings.model.layers
    tables = INDEX * broadcast_elements(settings, tokens, parts)
    return {"MindSpore": mindspore, **({"index tables": tables} if tables else {})}


def broadcast_elements(settings: Settings, tokens: int, parts: InCpp) -> int:
    """Elements of the results of broadcast ops, in the graphs of a step and of an evaluation.

    On CPU, an op of MindSpore that broadcasts keeps ``INDEX`` bytes per element from its first call until its graph is
    deleted (MS-71). In a block these are, forward and backward: the mask on the scores, 3/4*T*S*H elements, forward
    alone; the rotation of q and k, 4 of T*(H+1)*K/2 elements each way; the norm, 2 of T*D. In the loss: T*V, each way,
    and forward alone T*V for the mask of a padded vocabulary. An evaluation has those of the forward pass once more.
    """
    model, length = settings.model, settings.data.seq_len
    of_padding = 2 if model.padded_vocab > model.vocab_size else 0
    loss = 0 if parts.loss else (3 + of_padding) * tokens * model.padded_vocab
    if parts.blocks:
        return loss
    mask = tokens * length * model.heads * 3 // 4
    rotation, norm = 4 * tokens * (model.heads + 1) * model.head_dim // 2, 2 * tokens * model.d_model
    forward, backward = mask + rotation + norm, rotation
    return loss + model.layers * (2 * forward + backward)

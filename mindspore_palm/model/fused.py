"""PaLM's table, block, and logits with their loss, on one CPU (MS-69): C++ functions, and so are their gradients.

MindSpore calls them as ops. Without g++, for the block's ablations, in dtypes other than float32, on meshes, and on GPU
and Ascend, the Cells that these are made from compute the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.attention import Positions
from mindspore_palm.model.block import Block
from mindspore_palm.model.rope import rotation
from mindspore_palm.parallel import fused
from mindspore_palm.parallel.cells import Lookup
from mindspore_palm.parallel.fused import custom

SUPPORTED = ("norm_epsilon", "norm_scale", "final_norm_scale", "scaled_logits", "xpos_base")
"""Departures from PaLM that the functions compute, or that are outside of the block."""
Shape = Sequence[int]


def usable(config: PaLMConfig) -> bool:
    """Whether a network's blocks are computed by C++ on this machine."""
    return not config.departures(SUPPORTED) and fused.usable()


class FusedBlock(Block):
    """``Block`` as one C++ function. Dropout is between its parts, so with a mask it is ``Block`` itself."""

    def __init__(self, config: PaLMConfig, weights: Mapping[str, Parameter], attention: nn.Cell) -> None:
        super().__init__(config, weights, attention)
        self.compute = BlockFunction(config)
        self.head_dim, self.xpos_base = config.head_dim, config.xpos_base

    def construct(self, x: Tensor, positions: Positions, dropout_mask: Tensor | None = None) -> Tensor:
        if dropout_mask is not None:
            return super().construct(x, positions, dropout_mask)
        length = x.shape[0] // positions
        rotate_q = rotation(length, self.head_dim, self.head_dim**-0.5, self.xpos_base)
        rotate_k = rotation(length, self.head_dim, 1.0, -self.xpos_base)
        weights = self.norm.scale, self.project_in.kernel(), self.project_kv.kernel(), self.project_out.kernel()
        return self.compute(x, *weights, *rotate_q, *rotate_k)[0]


class BlockFunction(nn.Cell):
    """The block's result, and what its gradient needs: x [T, D], weights and tables to [T, D] and six more tensors."""

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.switches = Tensor(np.array([config.norm_epsilon, 1.0 - config.neutral_scale], np.float32))
        self.forward, self.backward = custom("BlockForward", _forward, 7), custom("BlockBackward", _backward, 5)
        self.zeros_like = ops.ZerosLike()

    def construct(
        self,
        x: Tensor,
        scale: Tensor,
        q_wi: Tensor,
        kv: Tensor,
        o_wo: Tensor,
        cos_q: Tensor,
        sin_q: Tensor,
        cos_k: Tensor,
        sin_k: Tensor,
    ) -> tuple[Tensor, ...]:
        return self.forward(x, scale, q_wi, kv, o_wo, cos_q, sin_q, cos_k, sin_k, self.switches)

    def bprop(
        self,
        x: Tensor,
        scale: Tensor,
        q_wi: Tensor,
        kv: Tensor,
        o_wo: Tensor,
        cos_q: Tensor,
        sin_q: Tensor,
        cos_k: Tensor,
        sin_k: Tensor,
        out: tuple[Tensor, ...],
        d_out: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        inputs = x, scale, q_wi, kv, o_wo, cos_q, sin_q, cos_k, sin_k, self.switches
        gradients = self.backward(*inputs, *out[1:], d_out[0])
        tables = cos_q, sin_q, cos_k, sin_k
        zeros = ()
        for table in tables:
            zeros += (self.zeros_like(table),)
        return (*gradients, *zeros)


def _forward(x: Shape, scale: Shape, q_wi: Shape, kv: Shape, o_wo: Shape, cos_q: Shape, *_: Shape) -> tuple[Shape, ...]:
    tokens, heads = x[0], (2 * o_wo[0] - q_wi[1]) // (2 * cos_q[-1])
    return (x, x, [tokens], [tokens, q_wi[1]], [tokens, kv[1]], [tokens, o_wo[0]], [tokens, heads])


def _backward(x: Shape, scale: Shape, q_wi: Shape, kv: Shape, o_wo: Shape, *_: Shape) -> tuple[Shape, ...]:
    return (x, scale, q_wi, kv, o_wo)


class FusedLookup(nn.Cell):
    """``TableLookup``, of which a C++ function adds both gradients of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.lookup, self.backward = Lookup(), custom("EmbedBackward", _of_table, 1)
        self.zeros_like = ops.ZerosLike()

    def construct(self, table_VD: Tensor, ids_T: Tensor) -> tuple[Tensor, Tensor]:
        return self.lookup(table_VD, ids_T), table_VD

    def bprop(
        self, table_VD: Tensor, ids_T: Tensor, out: tuple[Tensor, ...], d_out: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        return self.backward(d_out[0], ids_T, d_out[1]), self.zeros_like(ids_T)


def _of_table(rows: Shape, ids: Shape, table: Shape) -> Shape:
    return table


class FusedUnembedLoss(nn.Cell):
    """``UnembedLoss`` as one C++ function: the last norm, the logits, and their loss.

    Args:
        config: of the network.
        scale: of the last norm, float32 [D]; None for a norm without one.
        logit_scale: factor of the logits.
    """

    def __init__(self, config: PaLMConfig, scale: Parameter | None, logit_scale: float) -> None:
        super().__init__(auto_prefix=False)
        self.scale = Tensor(np.full(config.d_model, config.neutral_scale, np.float32)) if scale is None else scale
        self.compute = UnembedFunction(config, logit_scale)

    def construct(self, x_TD: Tensor, table_VD: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
        results = self.compute(x_TD, self.scale, table_VD, targets_T)
        return results[0], results[1]


class UnembedFunction(nn.Cell):
    """Cross-entropy and log(Z) of every token, and what their gradient needs: four more tensors."""

    def __init__(self, config: PaLMConfig, logit_scale: float) -> None:
        super().__init__()
        switches = config.norm_epsilon, 1.0 - config.neutral_scale, logit_scale, config.norm == "layer_norm"
        self.settings = Tensor(np.array([config.vocab_size, *switches], np.float32))
        self.forward, self.backward = custom("UnembedForward", _losses, 6), custom("UnembedBackward", _of_losses, 3)
        self.zeros_like = ops.ZerosLike()

    def construct(self, x_TD: Tensor, scale: Tensor, table_VD: Tensor, targets_T: Tensor) -> tuple[Tensor, ...]:
        return self.forward(x_TD, scale, table_VD, targets_T, self.settings)

    def bprop(
        self,
        x_TD: Tensor,
        scale: Tensor,
        table_VD: Tensor,
        targets_T: Tensor,
        out: tuple[Tensor, ...],
        d_out: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        gradients = self.backward(targets_T, x_TD, scale, table_VD, self.settings, *out[2:], d_out[0], d_out[1])
        return (*gradients, self.zeros_like(targets_T))


def _losses(x: Shape, scale: Shape, table: Shape, targets: Shape, _: Shape) -> tuple[Shape, ...]:
    return (targets, targets, x, targets, [x[0], table[0]], targets)


def _of_losses(targets: Shape, x: Shape, scale: Shape, table: Shape, *_: Shape) -> tuple[Shape, ...]:
    return (x, scale, table)

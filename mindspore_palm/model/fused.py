"""PaLM's block and its loss on one CPU (MS-69): each as one C++ function, with its gradient as another.

MindSpore calls them as ops. Without g++, for the block's ablations, in dtypes other than float32, on meshes, and on GPU
and Ascend, the Cells that these are made from compute the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.attention import Positions
from mindspore_palm.model.block import Block
from mindspore_palm.model.rope import rotation
from mindspore_palm.parallel import fused
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
        offset = 1.0 if config.norm_scale == "around_zero" else 0.0
        self.switches = Tensor(np.array([config.norm_epsilon, offset], np.float32))
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


class FusedTokenLoss(nn.Cell):
    """``TokenLoss`` as one C++ function: logits float32 [T, V] and targets int32 [T] to two float32 [T]."""

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.compute = LossFunction(config.vocab_size)

    def construct(self, logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
        cross_entropy_T, log_z_T, _, _ = self.compute(logits_TV, targets_T)
        return cross_entropy_T, log_z_T


class LossFunction(nn.Cell):
    """Cross-entropy and log(Z) of every token, and what their gradient needs."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocabulary, self.zeros_like = Tensor([vocab_size], ms.int32), ops.ZerosLike()
        self.forward, self.backward = custom("LossForward", _losses, 4), custom("LossBackward", _of_logits, 1)

    def construct(self, logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.forward(logits_TV, targets_T, self.vocabulary)

    def bprop(
        self, logits_TV: Tensor, targets_T: Tensor, out: tuple[Tensor, ...], d_out: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        d_logits_TV = self.backward(targets_T, self.vocabulary, out[2], out[3], d_out[0], d_out[1])
        return d_logits_TV, self.zeros_like(targets_T)


def _losses(logits: Shape, targets: Shape, *_: Shape) -> tuple[Shape, ...]:
    return targets, targets, logits, targets


def _of_logits(targets: Shape, vocabulary: Shape, powers: Shape, *_: Shape) -> Shape:
    return powers

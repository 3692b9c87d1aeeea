"""Next-token loss with z-loss (section 5 of the paper), in ops that can be sharded over the vocabulary (MS-12)."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.fused import FusedUnembedLoss
from mindspore_palm.model.palm import PaLM
from mindspore_palm.parallel import fused
from mindspore_palm.parallel.axes import shard
from mindspore_palm.parallel.cells import RowMax
from mindspore_palm.parallel.stages import on_stage_of

PADDING_LOGIT = -1e9  # logit of rows that only pad the table: they are not tokens and get zero probability


def make_unembed_loss(palm: PaLM) -> nn.Cell:
    """``UnembedLoss`` of a network, or the C++ function in its place."""
    if not fused.usable():
        return UnembedLoss(palm)
    norm = palm.unembed.norm
    return FusedUnembedLoss(palm.config, norm.scale if norm.has_scale else None, palm.unembed.logit_scale)


class UnembedLoss(nn.Cell):
    """``TokenLoss`` of the logits: residual stream, table [V, D] and targets int32 [T] to two float32 [T]."""

    def __init__(self, palm: PaLM) -> None:
        super().__init__(auto_prefix=False)
        self.unembed, self.token_loss = palm.unembed, TokenLoss(palm.config)

    def construct(self, x: Tensor, table_VD: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
        return self.token_loss(self.unembed(x, table_VD), targets_T)


class TokenLoss(nn.Cell):
    """Cross-entropy and log(Z) of every token: logits float32 [T, V] and targets int32 [T] to two float32 [T].

    Both are zero where the target is negative: such a token is not real. The maximum of each row is subtracted before
    the exponential, so large logits do not overflow.
    """

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        logits, column, row = ("tokens", "vocab"), ("tokens", "one"), ("tokens",)
        self.mask_vocab_padding, self.padded_vocab = MaskVocabPadding(config), config.padded_vocab
        self.row_max, self.subtract_max = RowMax(logits), shard(ops.Sub(), logits, column)
        self.exp, self.sum = shard(ops.Exp(), logits), shard(ops.ReduceSum(keep_dims=True), logits)
        self.log, self.add = shard(ops.Log(), column), shard(ops.Add(), column, column)
        self.one_hot = shard(ops.OneHot(), logits, (), ())
        self.pick = shard(ops.Mul(), logits, logits)
        self.minus, self.times = shard(ops.Sub(), row, row), shard(ops.Mul(), row, row)
        self.is_real, self.at_least_zero = shard(ops.GreaterEqual(), row, ()), shard(ops.Maximum(), row, ())
        self.cast, self.reshape = shard(ops.Cast(), row), ops.Reshape()
        self.on, self.off = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)

    def construct(self, logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
        real_T = self.cast(self.is_real(targets_T, 0), ms.float32)
        logits_TV = self.mask_vocab_padding(logits_TV)
        max_T1 = ops.stop_gradient(self.row_max(logits_TV))
        shifted_TV = self.subtract_max(logits_TV, max_T1)
        log_sum_T1 = self.log(self.sum(self.exp(shifted_TV), -1))
        one_hot_TV = self.one_hot(self.at_least_zero(targets_T, 0), self.padded_vocab, self.on, self.off)
        target_T = self.reshape(self.sum(self.pick(shifted_TV, one_hot_TV), -1), (-1,))
        log_z_T = self.reshape(self.add(log_sum_T1, max_T1), (-1,))
        cross_entropy_T = self.minus(self.reshape(log_sum_T1, (-1,)), target_T)
        return self.times(cross_entropy_T, real_T), self.times(log_z_T, real_T)


class MaskVocabPadding(nn.Cell):
    """Gives the rows that pad the table zero probability: logits [T, V] to the same shape."""

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.is_padded = config.padded_vocab != config.vocab_size
        if self.is_padded:
            padding = np.where(np.arange(config.padded_vocab) < config.vocab_size, 0.0, PADDING_LOGIT)
            self.padding = Tensor(padding.astype(np.float32))
            self.add = shard(ops.Add(), ("tokens", "vocab"), ("vocab",))

    def construct(self, logits_TV: Tensor) -> Tensor:
        return self.add(logits_TV, self.padding) if self.is_padded else logits_TV


class Loss(nn.Cell):
    """``sum(cross-entropy + z_weight * log(Z)^2) / count`` over the real tokens of a batch.

    Args:
        palm: the network.
        z_weight: weight of log(Z)^2; 1e-4 in PaLM.

    ``construct(inputs, targets, count)`` takes int32 [B, S] twice (a token with a negative target is not real) and
    float32 [], the number of real tokens in the full batch, of which this may be a micro-batch. It returns two
    float32 []: the training loss, and its cross-entropy, in nats/token. ``dropout_mask`` is optional, as in
    ``PaLM.logits``.
    """

    def __init__(self, palm: PaLM, z_weight: float = 1e-4) -> None:
        super().__init__(auto_prefix=False)
        self.palm, self.z_weight = palm, z_weight
        self.unembed_loss = on_stage_of(palm.config.layers - 1, make_unembed_loss(palm))
        self.square = shard(ops.Square(), ("tokens",))
        self.sum = shard(ops.ReduceSum(), ("tokens",))
        self.reshape = ops.Reshape()

    def construct(self, inputs: Tensor, targets: Tensor, count: Tensor, *dropout_mask: Tensor) -> tuple[Tensor, Tensor]:
        cross_entropy, square_log_z = self.sums(inputs, targets, *dropout_mask)
        mean = cross_entropy / count
        return mean + self.z_weight * (square_log_z / count), mean

    def sums(self, inputs: Tensor, targets: Tensor, *dropout_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over tokens of cross-entropy and of log(Z)^2: two float32 []."""
        x, table_VD = self.palm.stream(inputs, *dropout_mask)
        cross_entropy_T, log_z_T = self.unembed_loss(x, table_VD, self.reshape(targets, (-1,)))
        return self.sum(cross_entropy_T), self.sum(self.square(log_z_T))

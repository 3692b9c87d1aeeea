"""Next-token loss with z-loss (section 5 of the paper), written so that the vocabulary may be sharded (MS-12)."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.palm import PaLM
from mindspore_palm.parallel.axes import current_layout, shard

PADDING_LOGIT = -1e9  # of rows that only pad the table: they are no tokens and get no probability


class TokenLoss(nn.Cell):
    """Cross-entropy and log(Z) of every token: logits float32 [T, V], targets int32 [T] to two float32 [T].

    Both are zero where the target is negative: such a token is not real. The row's own maximum is taken off before the
    exponential, so logits of any size are safe.
    """

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        logits, column, row = ("tokens", "vocab"), ("tokens", "one"), ("tokens",)
        self.vocab_size, self.padded_vocab = config.vocab_size, config.padded_vocab
        if self.padded_vocab != self.vocab_size:
            padding = np.where(np.arange(self.padded_vocab) < self.vocab_size, 0.0, PADDING_LOGIT)
            self.padding = Tensor(padding.astype(np.float32))
            self.forbid = shard(ops.Add(), logits, ("vocab",))
        self.vocab_is_cut = current_layout().shards("vocab") > 1
        # MS-35, the value that comes with the position of the maximum: 5 times faster on CPU than ReduceMax, but only
        # the latter goes over a vocabulary that is cut
        maximum = ops.ReduceMax(keep_dims=True) if self.vocab_is_cut else ops.ArgMaxWithValue(axis=-1, keep_dims=True)
        self.maximum = shard(maximum, logits)
        self.shift = shard(ops.Sub(), logits, column)
        self.exp, self.sum = shard(ops.Exp(), logits), shard(ops.ReduceSum(keep_dims=True), logits)
        self.log, self.add = shard(ops.Log(), column), shard(ops.Add(), column, column)
        self.one_hot = shard(ops.OneHot(), logits, (), ())
        self.pick = shard(ops.Mul(), logits, logits)
        self.minus, self.times = shard(ops.Sub(), row, row), shard(ops.Mul(), row, row)
        self.is_real, self.at_least_zero = shard(ops.GreaterEqual(), row, ()), shard(ops.Maximum(), row, ())
        self.cast, self.reshape = shard(ops.Cast(), row), ops.Reshape()
        self.on, self.off = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)

    def construct(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        real = self.cast(self.is_real(targets, 0), ms.float32)
        if self.padded_vocab != self.vocab_size:
            logits = self.forbid(logits, self.padding)
        maximum = ops.stop_gradient(self.row_maximum(logits))
        shifted = self.shift(logits, maximum)
        log_sum = self.log(self.sum(self.exp(shifted), -1))
        hit = self.one_hot(self.at_least_zero(targets, 0), self.padded_vocab, self.on, self.off)
        target = self.reshape(self.sum(self.pick(shifted, hit), -1), (-1,))
        log_z = self.reshape(self.add(log_sum, maximum), (-1,))
        cross_entropy = self.minus(self.reshape(log_sum, (-1,)), target)
        return self.times(cross_entropy, real), self.times(log_z, real)

    def row_maximum(self, logits: Tensor) -> Tensor:
        """The largest logit of every token: [T, V] to [T, 1]."""
        if self.vocab_is_cut:
            return self.maximum(logits, -1)
        return self.maximum(logits)[1]


class Loss(nn.Cell):
    """``sum(cross-entropy + z_weight * log(Z)^2) / count`` over the real tokens of a batch.

    Args:
        palm: the network.
        z_weight: of log(Z)^2; PaLM has 1e-4.

    ``construct(inputs, targets, count)``: int32 [B, S] twice (a negative target is no real token) and float32 [], the
    number of real tokens of the whole batch, of which this may be a part. Returns two float32 []: the loss that is
    trained on, and the cross-entropy alone, in nats a token. ``keep``, if given, is as for ``PaLM.logits``.
    """

    def __init__(self, palm: PaLM, z_weight: float = 1e-4) -> None:
        super().__init__(auto_prefix=False)
        self.palm, self.z_weight = palm, z_weight
        self.token_loss = TokenLoss(palm.config)
        self.square = shard(ops.Square(), ("tokens",))
        self.sum = shard(ops.ReduceSum(), ("tokens",))
        self.reshape = ops.Reshape()

    def construct(self, inputs: Tensor, targets: Tensor, count: Tensor, *keep: Tensor) -> tuple[Tensor, Tensor]:
        cross_entropy, log_z = self.token_loss(self.palm.logits(inputs, *keep), self.reshape(targets, (-1,)))
        mean = self.sum(cross_entropy) / count
        return mean + self.z_weight * (self.sum(self.square(log_z)) / count), mean

"""Held-out loss in nats/token and in bits/byte; the latter does not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, ops

from mindspore_palm.errors import not_finite
from mindspore_palm.model.loss import make_unembed_loss
from mindspore_palm.model.palm import PaLM
from mindspore_palm.parallel.axes import current_layout, shard
from mindspore_palm.parallel.context import partition, this_rank
from mindspore_palm.parallel.top_cell import TopCell

HELD_OUT_AXES = (("batch", "length"), ("batch", "length"))  # logical axes of inputs and targets


@dataclass(frozen=True)
class Evaluation:
    """Loss over some text."""

    nats_per_token: float
    bits_per_byte: float
    """Loss of all tokens, including [eod], in bits, over the UTF-8 bytes that the tokens stand for."""
    tokens: int
    """Number of real tokens that were scored."""

    def checked(self, model: str) -> Evaluation:
        """Returns itself if the loss is finite.

        Args:
            model: its name in the message.

        Raises:
            UserError: the loss is NaN or infinite.
        """
        if not math.isfinite(self.nats_per_token):
            raise not_finite(model, "the held-out text")
        return self


class SummedCrossEntropy(TopCell):
    """Two int32 [B, S] to float32 []: nats of all tokens whose target is not negative."""

    def __init__(self, palm: PaLM) -> None:
        super().__init__(auto_prefix=False)
        self.palm, self.reshape = palm, ops.Reshape()
        self.unembed_loss = make_unembed_loss(palm)  # MS-71: in C++, it keeps nothing
        self.sum = shard(ops.ReduceSum(), ("tokens",))

    def construct(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.sum(self.unembed_loss(*self.palm.stream(inputs), self.reshape(targets, (-1,)))[0])


class Evaluator:
    """Scores batches with a network.

    Args:
        palm: the network.
        piece_bytes: int32 [vocab_size], the UTF-8 bytes that each token stands for.
        nats: returns the nats of a batch, as ``SummedCrossEntropy`` does; None for that Cell. A pipeline has its own.
    """

    def __init__(
        self, palm: PaLM, piece_bytes: np.ndarray, nats: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        self._nats = nats or partition(SummedCrossEntropy(palm), *HELD_OUT_AXES)
        self._piece_bytes = piece_bytes

    def __call__(self, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Evaluation:
        """Scores batches of equal shape.

        On several devices all workers call this with the same batches, and each computes its own rows. If weights are
        not finite, the loss is NaN or infinite; a training run may still recover from that.

        Args:
            batches: (inputs, targets), int32 [B, S]; a negative target is no real token.
        """
        nats, tokens, size = 0.0, 0, 0
        for inputs, targets in batches:
            rows = current_layout().rows(this_rank(), len(inputs))
            nats += float(self._nats(Tensor(inputs[rows]), Tensor(targets[rows])).asnumpy())
            real = targets[targets >= 0]
            tokens += real.size
            size += int(self._piece_bytes[real].sum(dtype=np.int64))
        return Evaluation(nats / max(1, tokens), nats / math.log(2) / max(1, size), tokens)

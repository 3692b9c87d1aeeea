"""Scoring: nats of given tokens under a network. All likelihoods of an evaluation are sums of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from mindspore import Tensor, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.data.vocabulary import fit_vocabulary
from mindspore_palm.errors import UserError, not_finite
from mindspore_palm.model.loss import TokenLoss
from mindspore_palm.model.palm import PaLM
from mindspore_palm.parallel.top_cell import TopCell


@dataclass(frozen=True)
class ScoringRow:
    """Tokens to score and their context: one row of a batch."""

    tokens: np.ndarray
    """int32 [n], 1 <= n <= window. [eod] precedes the first, as in every training sequence."""
    first: int
    """Index of the first token that is scored; those before it are context."""
    name: str = "a text"
    """Name of the text in messages."""


@dataclass(frozen=True)
class Score:
    """Cost of a row's scored tokens."""

    nats: float
    tokens: int
    size: int
    """UTF-8 bytes of their text."""
    greedy: bool
    """Whether each of them is the most likely token."""


class TokenScores(TopCell):
    """Inputs and targets int32 [B, S] to float32 [T], nats of each target, and bool [T], whether it is most likely."""

    def __init__(self, palm: PaLM, config: PaLMConfig) -> None:
        super().__init__(auto_prefix=False)
        self.palm, self.token_loss, self.reshape = palm, TokenLoss(config), ops.Reshape()
        self.most_likely, self.equal = ops.Argmax(-1), ops.Equal()

    def construct(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits, targets = self.palm.logits(inputs), self.reshape(targets, (-1,))
        logits = self.token_loss.mask_vocab_padding(logits)
        return self.token_loss(logits, targets)[0], self.equal(self.most_likely(logits), targets)


class Scorer:
    """Scores rows with a network, in batches of one shape, so that it is compiled once.

    Args:
        palm: the network.
        tokenizer: of the network.
        window: maximum tokens per row.
        batch: rows per batch; the last batch is padded.
        model: the model's name in messages.

    Raises:
        UserError: the tokenizer has tokens that the network does not have.
    """

    def __init__(self, palm: PaLM, tokenizer: Tokenizer, window: int, batch: int = 8, model: str = "the model") -> None:
        config = fit_vocabulary(palm.config, tokenizer.vocab_size, tokenizer.model_file)
        self.tokenizer, self.window, self.batch, self.model = tokenizer, window, batch, model
        self._scores = TokenScores(palm, config)

    def __call__(self, rows: Iterable[ScoringRow]) -> Iterator[Score]:
        """The score of each row, in order.

        Raises:
            UserError: the logits of a row are not finite.
        """
        rows = iter(rows)
        while batch := list(islice(rows, self.batch)):
            inputs = np.full((self.batch, self.window), self.tokenizer.eod, np.int32)
            targets = np.full((self.batch, self.window), -1, np.int32)
            for i, row in enumerate(batch):
                count = len(row.tokens)
                inputs[i, 1:count] = row.tokens[:-1]
                targets[i, row.first : count] = row.tokens[row.first :]
            nats, greedy = (out.asnumpy() for out in self._scores(Tensor(inputs), Tensor(targets)))
            nats, greedy = nats.reshape(inputs.shape), greedy.reshape(inputs.shape)
            for i, row in enumerate(batch):
                # context tokens have zero nats, or NaN if their logits are not finite
                if not np.isfinite(nats[i, : len(row.tokens)]).all():
                    raise not_finite(self.model, row.name)
                scored = slice(row.first, len(row.tokens))
                yield Score(
                    nats=float(nats[i, scored].sum(dtype=np.float64)),
                    tokens=len(row.tokens) - row.first,
                    size=int(self.tokenizer.piece_bytes[row.tokens[scored]].sum(dtype=np.int64)),
                    greedy=bool(greedy[i, scored].all()),
                )


def window_of(window: int | None, seq_len: int, option: str = "--window ") -> int:
    """Tokens per window: the user's number, or the training sequence length.

    Args:
        window: the user's number, or None.
        seq_len: training sequence length.
        option: name of the option, for messages.

    Raises:
        UserError: it is less than 1, or more than ``seq_len``.
    """
    if window is not None and not (isinstance(window, int) and window >= 1):
        raise UserError(f"{option}{window} must be 1 or more")
    if window is not None and window > seq_len:
        raise UserError(
            f"{option}{window}: the model was trained on {seq_len} tokens and knows no longer distances; set it to "
            f"at most {seq_len}, or leave it out: longer text is scored in several windows"
        )
    return window or seq_len


def windows(tokens: np.ndarray, window: int, stride: int, name: str = "a text") -> Iterator[ScoringRow]:
    """Splits a document into rows that score each of its tokens once.

    Args:
        tokens: int32 [n], of the document.
        window: maximum tokens per row.
        stride: tokens between the starts of rows. With ``window``, rows do not overlap, as in training. With less, each
            token after the first row has at least ``window - stride`` tokens of context.
        name: of the document.
    """
    scored = 0
    for start in range(0, len(tokens), stride):
        end = min(start + window, len(tokens))
        yield ScoringRow(tokens[start:end], scored - start, name)
        scored = end
        if end == len(tokens):
            return


def continuation(tokens: np.ndarray, first: int, window: int, name: str) -> ScoringRow:
    """The row that scores ``tokens[first:]``, with as much of the context before them as fits.

    Raises:
        UserError: the scored tokens alone are longer than a window; the message has ``name``.
    """
    if len(tokens) - first > window:
        raise UserError(
            f"{name}: {len(tokens) - first} tokens are to be scored at once, and the window has {window}; "
            "make the text shorter or the window larger"
        )
    start = max(0, len(tokens) - window)
    return ScoringRow(tokens[start:], first - start, name)

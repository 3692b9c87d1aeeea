"""Nats of given tokens under a network: the one thing that all likelihoods here are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from mindspore import Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.data.vocabulary import fit_vocabulary
from mindspore_palm.errors import UserError, not_finite
from mindspore_palm.model.loss import TokenLoss
from mindspore_palm.model.palm import PaLM


@dataclass(frozen=True)
class Row:
    """Tokens to be scored, with what stands before them: one row of a batch."""

    tokens: np.ndarray
    """int32 [n], 1 <= n <= window. Before the first stands [eod], as before every sequence of the training."""
    first: int
    """Index of the first token that is scored; those before it are context."""
    name: str = "a text"
    """What it is of, in messages."""


@dataclass(frozen=True)
class Score:
    """What a row's scored tokens cost."""

    nats: float
    tokens: int
    size: int
    """UTF-8 bytes that they stand for."""
    greedy: bool
    """Whether each of them is the most likely one."""


class TokenScores(nn.Cell):
    """int32 [B, S] twice to float32 [T], nats of each target, and bool [T], whether it is the most likely token."""

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
        tokenizer: whose tokens it knows.
        window: tokens of a row at most.
        batch: rows at a time; the last ones are filled up.
        model: its name in messages.

    Raises:
        UserError: the tokenizer has tokens that the network has not.
    """

    def __init__(self, palm: PaLM, tokenizer: Tokenizer, window: int, batch: int = 8, model: str = "the model") -> None:
        config = fit_vocabulary(palm.config, tokenizer.vocab_size, tokenizer.model_file)
        self.tokenizer, self.window, self.batch, self.model = tokenizer, window, batch, model
        self._scores = TokenScores(palm, config)

    def __call__(self, rows: Iterable[Row]) -> Iterator[Score]:
        """The score of each row, in order.

        Raises:
            UserError: the logits of a row are not finite.
        """
        rows = iter(rows)
        while batch := list(islice(rows, self.batch)):
            inputs = np.full((self.batch, self.window), self.tokenizer.eod, np.int32)
            targets = np.full((self.batch, self.window), -1, np.int32)
            for place, row in enumerate(batch):
                count = len(row.tokens)
                inputs[place, 1:count] = row.tokens[:-1]
                targets[place, row.first : count] = row.tokens[row.first :]
            nats, greedy = (out.asnumpy() for out in self._scores(Tensor(inputs), Tensor(targets)))
            nats, greedy = nats.reshape(inputs.shape), greedy.reshape(inputs.shape)
            for place, row in enumerate(batch):
                if not np.isfinite(nats[place, : len(row.tokens)]).all():  # of the context, zero times NaN is NaN, too
                    raise not_finite(self.model, row.name)
                scored = slice(row.first, len(row.tokens))
                yield Score(
                    nats=float(nats[place, scored].sum(dtype=np.float64)),
                    tokens=len(row.tokens) - row.first,
                    size=int(self.tokenizer.piece_bytes[row.tokens[scored]].sum(dtype=np.int64)),
                    greedy=bool(greedy[place, scored].all()),
                )


def window_of(wanted: int | None, trained: int, option: str = "--window ") -> int:
    """Tokens that a network sees at once: as many as wanted, or as it was trained on.

    Args:
        wanted: None is what it was trained on.
        trained: tokens.
        option: with which the user asks for it.

    Raises:
        UserError: less than 1, or more than it was trained on.
    """
    if wanted is not None and not (isinstance(wanted, int) and wanted >= 1):
        raise UserError(f"{option}{wanted} must be 1 or more")
    if wanted is not None and wanted > trained:
        raise UserError(
            f"{option}{wanted}: the model was trained on {trained} tokens and knows no longer distances; set it to "
            f"at most {trained}, or leave it out: longer text is scored in several windows"
        )
    return wanted or trained


def windows(tokens: np.ndarray, window: int, stride: int, name: str = "a text") -> Iterator[Row]:
    """Cuts a document into rows that score each of its tokens once.

    Args:
        tokens: int32 [n], of the document.
        window: tokens of a row at most.
        stride: how far a row starts behind the one before. ``window`` gives rows side by side, as in training; less
            gives each token, after the first row, at least ``window - stride`` tokens of context.
        name: of the document.
    """
    scored = 0
    for start in range(0, len(tokens), stride):
        end = min(start + window, len(tokens))
        yield Row(tokens[start:end], scored - start, name)
        scored = end
        if end == len(tokens):
            return


def continuation(tokens: np.ndarray, first: int, window: int, name: str) -> Row:
    """The row that scores ``tokens[first:]``, with as much of what stands before as fits.

    Raises:
        UserError: the tokens to be scored alone are more than a window; says of what, by ``name``.
    """
    if len(tokens) - first > window:
        raise UserError(
            f"{name}: {len(tokens) - first} tokens are to be scored at once, and the window has {window}; "
            "make the text shorter or the window larger"
        )
    cut = max(0, len(tokens) - window)
    return Row(tokens[cut:], first - cut, name)

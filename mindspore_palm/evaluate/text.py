"""Held-out likelihood of documents: nats a token, bits a byte, perplexity, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mindspore_palm.data.corpus import Document
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.errors import UserError
from mindspore_palm.evaluate.estimate import Estimate, ratio
from mindspore_palm.evaluate.scorer import Row, Score, Scorer, windows

NO_TEXT = "there is no text to score"


@dataclass(frozen=True)
class TextResult:
    """Likelihood of some text. Every token counts, the [eod] after each document included."""

    nats_per_token: Estimate
    bits_per_byte: Estimate
    """Nats of all tokens in bits, over the UTF-8 bytes of the text."""
    perplexity: Estimate
    """``exp(nats_per_token)``."""
    documents: int
    tokens: int
    size: int
    """UTF-8 bytes."""
    window: int
    stride: int
    unit: str
    """What the intervals take for independent: document, or window where there is one document only."""


def score_text(scorer: Scorer, documents: Iterable[Document], stride: int | None = None) -> TextResult:
    """Scores documents, each by itself.

    Args:
        scorer: of the network.
        documents: as ``data.corpus.documents`` gives them.
        stride: see ``scorer.windows``; None is the window.

    Raises:
        UserError: there is no text, the stride does not fit, or the model's logits are not finite.
    """
    stride = stride_of(stride, scorer.window)
    owners: list[int] = []

    def rows() -> Iterator[Row]:
        for number, (name, tokens) in enumerate(_token_arrays(documents, scorer.tokenizer)):
            for row in windows(tokens, scorer.window, stride, name):
                owners.append(number)
                yield row

    scores = list(scorer(rows()))
    if not scores:
        raise UserError(NO_TEXT)
    count = owners[-1] + 1
    units = _by_document(scores, owners) if count > 1 else scores
    nats, tokens = [unit.nats for unit in units], [unit.tokens for unit in units]
    size = [unit.size for unit in units]
    per_token = ratio(nats, tokens)
    return TextResult(
        nats_per_token=per_token,
        bits_per_byte=ratio([part / math.log(2) for part in nats], size),
        perplexity=per_token.map(_exp),
        documents=count,
        tokens=sum(tokens),
        size=sum(size),
        window=scorer.window,
        stride=stride,
        unit="document" if count > 1 else "window",
    )


def stride_of(wanted: int | None, window: int) -> int:
    """How far each window starts after the one before; the window by default.

    Raises:
        UserError: that does not fit the window.
    """
    if wanted is not None and not 1 <= wanted <= window:
        raise UserError(f"--stride {wanted}: a stride of {wanted} does not fit a window of {window}; set 1 to {window}")
    return window if wanted is None else wanted


def check_text(documents: Iterable[Document]) -> None:
    """Reads all documents once, before any is scored.

    Raises:
        UserError: there is none, or one of them cannot be read.
    """
    found = False
    for document in documents:
        found = found or bool(document.text)
    if not found:
        raise UserError(NO_TEXT)


def _token_arrays(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """The name and the tokens of each document, [eod] last; a large document comes in parts."""
    parts: list[np.ndarray] = []
    for document in documents:
        parts.append(np.array(tokenizer.encode(document.text), np.int32))
        if document.last:
            yield document.name, np.concatenate([*parts, np.array([tokenizer.eod], np.int32)])
            parts = []


def _by_document(scores: list[Score], owners: list[int]) -> list[Score]:
    sums = [[0.0, 0, 0] for _ in range(owners[-1] + 1)]
    for score, owner in zip(scores, owners, strict=True):
        for place, value in enumerate((score.nats, score.tokens, score.size)):
            sums[owner][place] += value
    return [Score(nats, tokens, size, greedy=False) for nats, tokens, size in sums]


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))  # of a model with overflowing logits, no float holds it

"""Held-out likelihood of documents: nats/token, bits/byte and perplexity, each with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mindspore_palm.data.corpus import Document
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.errors import UserError
from mindspore_palm.evaluate.estimate import Estimate, ratio
from mindspore_palm.evaluate.scorer import Score, Scorer, ScoringRow, windows

NO_TEXT = "there is no text to score"


@dataclass(frozen=True)
class TextResult:
    """Likelihood of a text. All tokens count, including the [eod] after each document."""

    nats_per_token: Estimate
    bits_per_byte: Estimate
    """Bits of all tokens over the UTF-8 bytes of the text."""
    perplexity: Estimate
    """``exp(nats_per_token)``."""
    documents: int
    tokens: int
    size: int
    """UTF-8 bytes."""
    window: int
    stride: int
    unit: str
    """Unit that the intervals treat as independent: document, or window if there is only one document."""


def score_text(scorer: Scorer, documents: Iterable[Document], stride: int | None = None) -> TextResult:
    """Scores documents, each without the context of others.

    Args:
        scorer: of the network.
        documents: from ``data.corpus.documents``.
        stride: tokens between the starts of windows, see ``scorer.windows``; None for the window.

    Raises:
        UserError: there is no text, the stride does not fit, or the model's logits are not finite.
    """
    stride = stride_of(stride, scorer.window)
    owners: list[int] = []

    def rows() -> Iterator[ScoringRow]:
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


def stride_of(stride: int | None, window: int) -> int:
    """Tokens between the starts of windows: the user's number, or the window.

    Raises:
        UserError: it is less than 1 or more than the window.
    """
    if stride is not None and not 1 <= stride <= window:
        raise UserError(f"--stride {stride}: a stride of {stride} does not fit a window of {window}; set 1 to {window}")
    return window if stride is None else stride


def check_text(documents: Iterable[Document]) -> None:
    """Reads all documents once, before any is scored.

    Raises:
        UserError: there is no text, or a document cannot be read.
    """
    has_text = False
    for document in documents:
        has_text = has_text or bool(document.text)
    if not has_text:
        raise UserError(NO_TEXT)


def _token_arrays(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """Name and tokens of each document, [eod] last. Parts of a large document are joined."""
    parts: list[np.ndarray] = []
    for document in documents:
        parts.append(np.array(tokenizer.encode(document.text), np.int32))
        if document.last:
            yield document.name, np.concatenate([*parts, np.array([tokenizer.eod], np.int32)])
            parts = []


def _by_document(scores: list[Score], owners: list[int]) -> list[Score]:
    """Sums of the scores of each document."""
    sums = [Score(0.0, 0, 0, greedy=False) for _ in range(owners[-1] + 1)]
    for score, owner in zip(scores, owners, strict=True):
        total = sums[owner]
        sums[owner] = Score(total.nats + score.nats, total.tokens + score.tokens, total.size + score.size, greedy=False)
    return sums


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))  # a larger power, of a model with huge logits, would overflow a float

"""Sampling of the next token from logits."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from mindspore_palm.data.prompt import Prompt
from mindspore_palm.errors import UserError

MAX_LOGIT = 1e300  # bound of a logit after the penalty


@dataclass(frozen=True)
class Sampling:
    """Settings of a generation. They apply in this order: repetition penalty, temperature, top-k, top-p.

    Raises:
        UserError: a value is out of its range.
    """

    max_tokens: int = 256
    """Maximum number of generated tokens. Default 256."""
    temperature: float = 0.0
    """Divides the logits; 0 always takes the likeliest token. Default 0."""
    top_k: int = 0
    """Draws from this many of the likeliest tokens; 0: from all. Default 0."""
    top_p: float = 1.0
    """Draws from the fewest likeliest tokens that together reach this probability (arXiv 1904.09751). Default 1."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that occurred before, or multiplies negative ones (arXiv 1909.05858). Default 1."""
    stop: tuple[str, ...] = ()
    """Texts that end a generation; they are not part of it."""
    seed: int = 0
    """Decides all draws, together with the prompt; the other prompts of a batch have no influence. Equal prompts get
    different draws. Default 0."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        rules = {
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "temperature": (0 <= self.temperature < math.inf, "0 (always the likeliest token) or more"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0; 1 is no penalty"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise UserError(f"{name} = {getattr(self, name)!r}: must be {rule}")
        for text in self.stop:
            if not _is_text(text):
                raise UserError(
                    f"stop = {text!r}: must be a text in UTF-8 and not empty; nothing else is ever generated"
                )


def _is_text(text: str) -> bool:
    """Whether a text is not empty and has no lone surrogates, which stand for bytes that are not UTF-8."""
    return bool(text) and not any("\ud800" <= character < "\ue000" for character in text)


def stream_number(prompt: Prompt, repetition: int) -> int:
    """The number of a generation's random stream, for ``Sampler``.

    Args:
        prompt: the prompt, with the [eod] before it if there is one.
        repetition: the number of equal prompts before it.
    """
    content = f"{list(prompt.context)} {prompt.white_space!r} {repetition}"
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=16).digest(), "little")


class Sampler:
    """Samples the tokens of one generation.

    Args:
        sampling: the settings.
        number: decides the draws, together with the seed; from ``stream_number``.
    """

    def __init__(self, sampling: Sampling, number: int) -> None:
        self._sampling, self._random = sampling, np.random.Generator(np.random.Philox([sampling.seed, number]))

    def __call__(self, logits: np.ndarray, seen: set[int], allowed: np.ndarray | None = None) -> int:
        """The next token.

        Args:
            logits: float32 [vocab_size].
            seen: tokens that the repetition penalty applies to.
            allowed: int64 [n], the tokens to choose from; None allows all.
        """
        settings = self._sampling
        if settings.repetition_penalty != 1.0:
            logits, penalized = logits.astype(np.float64), np.fromiter(seen, np.int64)
            with np.errstate(over="ignore"):  # an extreme penalty is clipped, so that no infinity meets another
                penalty = np.where(
                    logits[penalized] > 0, 1.0 / np.float64(settings.repetition_penalty), settings.repetition_penalty
                )
                logits[penalized] = np.clip(logits[penalized] * penalty, -MAX_LOGIT, MAX_LOGIT)
        if allowed is not None:
            return int(allowed[self._choose(logits[allowed])])
        return self._choose(logits)

    def _choose(self, logits: np.ndarray) -> int:
        """The index of the chosen logit."""
        settings = self._sampling
        if settings.temperature == 0.0:
            return int(logits.argmax())
        with np.errstate(over="ignore"):  # near temperature 0, all but the likeliest overflow to -inf
            scores = (logits.astype(np.float64) - logits.max()) / settings.temperature
        candidates = np.arange(len(scores))
        if 0 < settings.top_k < len(scores):
            candidates = np.sort(np.argpartition(-scores, settings.top_k - 1)[: settings.top_k])
        probabilities = np.exp(scores[candidates])
        if settings.top_p < 1.0:
            order = np.argsort(-probabilities, kind="stable")
            cumulative = np.cumsum(probabilities[order])
            order = order[: 1 + np.searchsorted(cumulative, settings.top_p * cumulative[-1])]
            candidates, probabilities = candidates[order], probabilities[order]
        cumulative = np.cumsum(probabilities)
        index = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(candidates[min(index, len(candidates) - 1)])

"""How the next token is taken from logits."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from mindspore_palm.data.prompt import Prompt
from mindspore_palm.errors import UserError

LARGEST = 1e300  # of a logit after the penalty


@dataclass(frozen=True)
class Sampling:
    """Settings of a generation. In this order: repetition penalty, temperature, top-k, top-p.

    Raises:
        UserError: a value is out of its range.
    """

    max_tokens: int = 256
    """Tokens that are generated at most. Default 256."""
    temperature: float = 0.0
    """What logits are divided by; 0 always takes the likeliest token. Default 0."""
    top_k: int = 0
    """Only so many of the likeliest tokens are drawn from; 0: all. Default 0."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability are drawn from (arXiv 1904.09751). Default 1."""
    repetition_penalty: float = 1.0
    """Logits of tokens that are there already are divided by this, or multiplied if negative (arXiv 1909.05858)."""
    stop: tuple[str, ...] = ()
    """Texts that end a generation, and are left out of it."""
    seed: int = 0
    """Decides all draws, together with the prompt: not with what it is generated beside. Of equal prompts, each has
    draws of its own. Default 0."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        fine = {
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "temperature": (0 <= self.temperature < math.inf, "0 (always the likeliest token) or more"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0; 1 is no penalty"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for name, (is_fine, wanted) in fine.items():
            if not is_fine:
                raise UserError(f"{name} = {getattr(self, name)!r}: must be {wanted}")
        for text in self.stop:
            if not _is_text(text):
                raise UserError(f"stop = {text!r}: must be a text in UTF-8 that is not empty; no other text comes")


def _is_text(text: str) -> bool:
    """Whether a text is not empty and holds whole characters; half of one comes from an argument that is not UTF-8."""
    return bool(text) and not any("\ud800" <= character < "\ue000" for character in text)


def number_of(prompt: Prompt, repetition: int) -> int:
    """The number of a generation for ``Sampler``.

    Args:
        prompt: with the [eod] before it, if there is one.
        repetition: how many equal prompts come before it.
    """
    content = f"{list(prompt.context)} {prompt.white_space!r} {repetition}"
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=16).digest(), "little")


class Sampler:
    """Takes the tokens of one generation.

    Args:
        sampling: the settings.
        number: of the generation; decides its draws, together with the seed. ``number_of`` makes it.
    """

    def __init__(self, sampling: Sampling, number: int) -> None:
        self._sampling, self._random = sampling, np.random.Generator(np.random.Philox([sampling.seed, number]))

    def __call__(self, logits: np.ndarray, there: set[int], allowed: np.ndarray | None = None) -> int:
        """The next token.

        Args:
            logits: float32 [vocab_size].
            there: tokens that repetition is a penalty for.
            allowed: int64 [n], the tokens to choose from; None is all of them.
        """
        settings = self._sampling
        if settings.repetition_penalty != 1.0:
            logits, seen = logits.astype(np.float64), np.fromiter(there, np.int64)
            with np.errstate(over="ignore"):  # an extreme penalty: as far as numbers go, and no infinity less infinity
                penalty = np.where(
                    logits[seen] > 0, 1.0 / np.float64(settings.repetition_penalty), settings.repetition_penalty
                )
                logits[seen] = np.clip(logits[seen] * penalty, -LARGEST, LARGEST)
        if allowed is not None:
            return int(allowed[self._choose(logits[allowed])])
        return self._choose(logits)

    def _choose(self, logits: np.ndarray) -> int:
        """Which of the logits it is."""
        settings = self._sampling
        if settings.temperature == 0.0:
            return int(logits.argmax())
        with np.errstate(over="ignore"):  # near temperature 0, what is less likely has no probability at all
            scores = (logits.astype(np.float64) - logits.max()) / settings.temperature
        candidates = np.arange(len(scores))
        if 0 < settings.top_k < len(scores):
            candidates = np.sort(np.argpartition(-scores, settings.top_k - 1)[: settings.top_k])
        probabilities = np.exp(scores[candidates])
        if settings.top_p < 1.0:
            order = np.argsort(-probabilities, kind="stable")
            reached = np.cumsum(probabilities[order])
            order = order[: 1 + np.searchsorted(reached, settings.top_p * reached[-1])]
            candidates, probabilities = candidates[order], probabilities[order]
        reached = np.cumsum(probabilities)
        drawn = np.searchsorted(reached, self._random.random() * reached[-1], side="right")
        return int(candidates[min(drawn, len(candidates) - 1)])

"""One sequence while it is generated: its window, its text and why it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mindspore_palm.data.prompt import Prompt
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.errors import not_finite
from mindspore_palm.generate.opening import Openings
from mindspore_palm.generate.sampling import Sampler, Sampling, stream_number
from mindspore_palm.generate.text import GrowingText

Finished = Literal["", "eod", "stop", "length"]


@dataclass(frozen=True)
class Generation:
    """The result for one prompt."""

    text: str
    """The generated text, without the prompt, the stop text and an incomplete character at the end."""
    token_ids: list[int]
    """All generated tokens, including an [eod] and those of a stop text. The first one may begin with the prompt's
    trailing white space."""
    log_probs: list[float]
    """Natural log-probability of each token by the model itself: at temperature 1, without penalty, top-k and top-p."""
    finished: Finished
    """Why it ended: eod (the model ended the document), stop (a stop text occurred) or length (max_tokens)."""
    opening: list[int] = field(default_factory=list)
    """Tokens before ``token_ids`` that only repeat white space from the end of the prompt."""


class GrowingSequence:
    """One sequence while it is generated. What it becomes depends on its own arguments alone.

    Args:
        prompt: its beginning.
        sampling: the settings.
        repetition: the number of equal prompts before it.
        tokenizer: the model's tokenizer.
        openings: finds the tokens that a text may begin with.
        name: the prompt's name in messages.
        model: the model's name in messages.
        alternatives: likeliest tokens of each position whose log-probabilities are kept.
    """

    def __init__(
        self,
        prompt: Prompt,
        sampling: Sampling,
        repetition: int,
        tokenizer: Tokenizer,
        openings: Openings,
        name: str = "the prompt",
        model: str = "the model",
        alternatives: int = 0,
    ) -> None:
        self.window = list(prompt.context)
        """The tokens that the network sees."""
        self.text = GrowingText(sampling.stop)
        self.finished: Finished = ""
        self.token_ids: list[int] = []
        self.log_probs: list[float] = []
        self.opening: list[int] = []
        self.repeated = 0
        """Bytes at the beginning of ``token_ids`` that repeat white space from the end of the prompt."""
        self.alternatives: list[list[tuple[int, float]]] = []
        """For each of ``token_ids``, the likeliest tokens and their log-probabilities, the likeliest first."""
        self._tokenizer, self._openings = tokenizer, openings
        self._model, self._name, self._alternatives = model, name, alternatives
        self._given = prompt.white_space.encode()  # bytes that the next tokens must begin with
        self._seen = set(prompt.context) - {self._tokenizer.eod}  # no penalty for ending: [eod] is before every prompt
        self._sampling, self._sampler = sampling, Sampler(sampling, stream_number(prompt, repetition))

    def append_token(self, logits: np.ndarray, log_z: float) -> None:
        """Samples the next token and appends it.

        Args:
            logits: float32 [vocab_size], of the next token.
            log_z: their log(Z).

        Raises:
            UserError: they are not finite.
        """
        if not (np.isfinite(log_z) and np.isfinite(logits).all()):
            raise not_finite(self._model, f"token {1 + len(self.opening) + len(self.token_ids)} after {self._name}")
        token = self._sampler(logits, self._seen, self._openings(self._given) if self._given else None)
        self.window.append(token)
        if token != self._tokenizer.eod:
            self._seen.add(token)
        new = self._tokenizer.decode_bytes([token])
        given, self._given = self._given, self._given[len(new) :]
        if given and len(new) <= len(given):
            self.opening.append(token)
            return
        if not self.token_ids:
            self.repeated = len(given)
        self.token_ids.append(token)
        self.log_probs.append(float(logits[token]) - log_z)
        if self._alternatives:
            self.alternatives.append(_likeliest(logits, log_z, self._alternatives))
        self.text.add(new[len(given) :])
        if token == self._tokenizer.eod:
            self.finished = "eod"
        elif self.text.stopped:
            self.finished = "stop"
        elif len(self.token_ids) == self._sampling.max_tokens:
            self.finished = "length"

    def slide(self, context: int) -> bool:
        """Drops all but the last half of the context if the window is longer than it; returns whether it was."""
        if len(self.window) <= context:
            return False
        self.window = self.window[-(context // 2) :]
        return True

    def piece(self) -> str:
        """The text that is new since the last call; see ``GrowingText.piece``."""
        return self.text.piece(last=bool(self.finished))

    def result(self) -> Generation:
        """The generation so far."""
        return Generation(self.text.whole, self.token_ids, self.log_probs, self.finished, self.opening)


def _likeliest(logits: np.ndarray, log_z: float, count: int) -> list[tuple[int, float]]:
    """The likeliest tokens and their log-probabilities; of equal ones, the lower token first."""
    order = np.lexsort((np.arange(len(logits)), -logits))[:count]
    return [(int(token), float(logits[token]) - log_z) for token in order]

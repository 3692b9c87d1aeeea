"""Prompts in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.data.vocabulary import fit_vocabulary
from mindspore_palm.errors import UserError
from mindspore_palm.generate.decoder import Decoder
from mindspore_palm.generate.sampling import Sampler, Sampling
from mindspore_palm.generate.text import GrowingText
from mindspore_palm.model.palm import PaLM

CONTEXT = 1024  # positions, unless told otherwise

Finished = Literal["", "eod", "stop", "length"]


@dataclass(frozen=True)
class Generation:
    """What was generated for one prompt."""

    text: str
    """Without prompt, stop text, and a character that is cut at the end."""
    token_ids: list[int]
    """All tokens, an [eod] and those of a stop text included."""
    log_probs: list[float]
    """Of each token, natural, by the model itself: at temperature 1, without penalty, top-k and top-p."""
    finished: Finished
    """What ended it: eod (the model ended the document), stop (a stop text came), length (max_tokens)."""


class Generator:
    """Generates text with a network.

    Args:
        palm: the network.
        tokenizer: its own.
        context: tokens of prompt and generation that the network sees at most; 1,024 if None. A network is good at
            no more than it was trained on: ``data.seq_len`` of its ``config.yaml``. A prompt must leave room for one
            token. A generation that fills it goes on: the window slides, the last half of it is read again as the
            beginning of a text and the rest forgotten.
        batch: sequences that are computed at once.

    Raises:
        UserError: the tokenizer has tokens that the network does not have, or a number is too small.
    """

    def __init__(self, palm: PaLM, tokenizer: Tokenizer, context: int | None = None, batch: int = 1) -> None:
        self.palm, self.tokenizer, self.context, self.batch = palm, tokenizer, context or CONTEXT, batch
        config = fit_vocabulary(palm.config, tokenizer.vocab_size, tokenizer.model_file)
        if self.context < 2 or batch < 1:
            raise UserError(f"context = {self.context}, batch = {batch}: set them to at least 2 and 1")
        self._too_long = f"and the context holds {self.context:,} tokens: shorten it to at most {self.context - 1:,}"
        self._decoder = Decoder(palm, batch, self.context, config)

    def __call__(self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling) -> list[Generation]:
        """Generates for every prompt, ``batch`` of them at a time.

        Args:
            prompts: texts, each of which begins a document, or tokens as they are.
            sampling: the settings.

        Raises:
            UserError: a prompt is empty, too long, or holds what is no token or no text.
        """
        rows = [self._begin(prompt, sampling, number) for number, prompt in enumerate(prompts)]
        for start in range(0, len(rows), self.batch):
            for _ in self._run(rows[start : start + self.batch]):
                pass
        return [row.result() for row in rows]

    def stream(self, prompt: str | Sequence[int], sampling: Sampling) -> Iterator[str]:
        """Text for one prompt as it comes, in pieces; together, they are the text of ``__call__``.

        Returns:
            The pieces; as the value of the iterator when it ends, the Generation.

        Raises:
            UserError: as ``__call__``.
        """
        row = self._begin(prompt, sampling, 0)
        return self._pieces(row)

    def _pieces(self, row: _Row) -> Iterator[str]:
        for _ in self._run([row]):
            if piece := row.text.piece(last=bool(row.finished)):
                yield piece
        return row.result()

    def _begin(self, prompt: str | Sequence[int], sampling: Sampling, number: int) -> _Row:
        name = f"prompt {number + 1}" if number else "the prompt"
        if len(prompt) == 0:
            raise UserError(f"{name} is empty; write what the text begins with")
        if isinstance(prompt, str):
            if len(prompt) > self.context * int(self.tokenizer.piece_bytes.max()):  # not worth being read
                raise UserError(f"{name} has {len(prompt):,} characters, {self._too_long}")
            tokens = [self.tokenizer.eod, *self.tokenizer.encode(prompt)]
        else:
            tokens = [int(token) for token in prompt]
            if outside := [token for token in tokens if not 0 <= token < self.tokenizer.vocab_size]:
                raise UserError(f"{name} holds {outside[0]}, and tokens go to {self.tokenizer.vocab_size - 1}")
        if len(tokens) >= self.context:
            raise UserError(f"{name} has {len(tokens):,} tokens, {self._too_long}")
        return _Row(tokens, sampling, number, self.tokenizer)

    def _run(self, rows: list[_Row]) -> Iterator[None]:
        """Generates until all rows are finished, and stops after every token."""
        logits, log_z = self._decoder.read(self._windows(rows))
        while True:
            for row, own, z in zip(rows, logits, log_z, strict=False):
                if not row.finished:
                    row.take(own, float(z))
            yield
            growing = [row for row in rows if not row.finished]
            if not growing:
                return
            if any(len(row.window) > self.context for row in growing):
                for row in growing:
                    row.slide(self.context)
                logits, log_z = self._decoder.read(self._windows(rows))
            else:
                windows = self._windows(rows)
                last = np.array([window[-1] for window in windows])
                logits, log_z = self._decoder.write(last, np.array([len(window) - 1 for window in windows]))

    def _windows(self, rows: list[_Row]) -> list[list[int]]:
        """What each sequence of the network sees; something for those that nobody needs."""
        windows = [[self.tokenizer.eod] if row.finished else row.window for row in rows]
        return windows + [[self.tokenizer.eod]] * (self.batch - len(rows))


class _Row:
    """One sequence while it grows."""

    def __init__(self, prompt: list[int], sampling: Sampling, number: int, tokenizer: Tokenizer) -> None:
        self.window = list(prompt)
        """What the network sees."""
        self.text, self.finished = GrowingText(sampling.stop), ""
        self._tokens, self._log_probs, self._there = [], [], set(prompt)
        self._sampling, self._sampler, self._tokenizer = sampling, Sampler(sampling, number), tokenizer

    def take(self, logits: np.ndarray, log_z: float) -> None:
        """One more token."""
        if not np.isfinite(log_z):
            raise UserError("the model's logits are not finite; its weights are of a training that failed")
        token = self._sampler(logits, self._there)
        self._tokens.append(token)
        self._log_probs.append(float(logits[token]) - log_z)
        self._there.add(token)
        self.window.append(token)
        self.text.add(self._tokenizer.decode_bytes([token]))
        if token == self._tokenizer.eod:
            self.finished = "eod"
        elif self.text.stopped:
            self.finished = "stop"
        elif len(self._tokens) == self._sampling.max_tokens:
            self.finished = "length"

    def slide(self, context: int) -> None:
        """Forgets all but the last half of a full window."""
        if len(self.window) > context:
            self.window = self.window[-(context // 2) :]

    def result(self) -> Generation:
        return Generation(self.text.whole, self._tokens, self._log_probs, self.finished)

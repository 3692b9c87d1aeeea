"""Prompts in, text out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mindspore_palm.data.prompt import Prompt, encode_prompt
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.data.vocabulary import fit_vocabulary
from mindspore_palm.errors import UserError, not_finite
from mindspore_palm.generate.decoder import Decoder
from mindspore_palm.generate.opening import Openings
from mindspore_palm.generate.sampling import Sampler, Sampling, number_of
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
    """All tokens, an [eod] and those of a stop text included. The first one may begin with the prompt's last white
    space."""
    log_probs: list[float]
    """Of each token, natural, by the model itself: at temperature 1, without penalty, top-k and top-p."""
    finished: Finished
    """What ended it: eod (the model ended the document), stop (a stop text came), length (max_tokens)."""
    opening: list[int] = field(default_factory=list)
    """Tokens before ``token_ids`` that hold nothing but white space from the end of the prompt."""


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
        model: its name in messages.

    Raises:
        UserError: the tokenizer has tokens that the network does not have, or a number is too small.
    """

    def __init__(
        self, palm: PaLM, tokenizer: Tokenizer, context: int | None = None, batch: int = 1, model: str = "the model"
    ) -> None:
        self.palm, self.tokenizer, self.context, self.batch = palm, tokenizer, context or CONTEXT, batch
        self.model, self.openings = model, Openings(tokenizer)
        config = fit_vocabulary(palm.config, tokenizer.vocab_size, tokenizer.model_file)
        if self.context < 2 or batch < 1:
            raise UserError(f"context = {self.context}, batch = {batch}: set them to at least 2 and 1")
        self._too_long = f"and the context holds {self.context:,} tokens: shorten it to at most {self.context - 1:,}"
        self._decoder = Decoder(palm, batch, self.context, config)

    def __call__(self, prompts: Sequence[str | Prompt | Sequence[int]], sampling: Sampling) -> list[Generation]:
        """Generates for every prompt, ``batch`` of them at a time. A prompt's text does not depend on the others.

        Args:
            prompts: texts, each of which begins a document; or tokens as they are, up to a border or to the end.
            sampling: the settings.

        Raises:
            UserError: a prompt is empty, too long, or holds what is no token or no text; the logits are not finite.
        """
        rows, seen = [], Counter()
        for number, prompt in enumerate(prompts):
            name = f"prompt {number + 1}" if len(prompts) > 1 else "the prompt"
            start = self._read(prompt, name)
            rows.append(_Row(start, sampling, seen[start], self, name))
            seen[start] += 1
        for start in range(0, len(rows), self.batch):
            for _ in self._run(rows[start : start + self.batch]):
                pass
        return [row.result() for row in rows]

    def stream(self, prompt: str | Prompt | Sequence[int], sampling: Sampling) -> Iterator[str]:
        """Text for one prompt as it comes, in pieces; together, they are the text of ``__call__``.

        Returns:
            The pieces; as the value of the iterator when it ends, the Generation.

        Raises:
            UserError: as ``__call__``.
        """
        return self._pieces(_Row(self._read(prompt, "the prompt"), sampling, 0, self, "the prompt"))

    def _pieces(self, row: _Row) -> Iterator[str]:
        for _ in self._run([row]):
            if piece := row.text.piece(last=bool(row.finished)):
                yield piece
        return row.result()

    def _read(self, prompt: str | Prompt | Sequence[int], name: str) -> Prompt:
        """A prompt as the network gets it, [eod] before a text included."""
        if isinstance(prompt, str):
            if not prompt:
                raise UserError(f"{name} is empty; write what the text begins with")
            if len(prompt) > self.context * int(self.tokenizer.piece_bytes.max()):  # not worth being read
                raise UserError(f"{name} has {len(prompt):,} characters, {self._too_long}")
            try:
                text = encode_prompt(self.tokenizer, prompt)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
            prompt = Prompt((self.tokenizer.eod, *text.context), text.white_space)
        elif not isinstance(prompt, Prompt):
            prompt = Prompt(tuple(int(token) for token in prompt))
        if not prompt.context:
            raise UserError(f"{name} is empty; write what the text begins with")
        if outside := [token for token in prompt.context if not 0 <= token < self.tokenizer.vocab_size]:
            raise UserError(f"{name} holds {outside[0]}, and tokens go to {self.tokenizer.vocab_size - 1}")
        count = len(prompt.context) + len(self.tokenizer.encode(prompt.white_space))
        if count >= self.context:
            raise UserError(f"{name} has {count:,} tokens, {self._too_long}")
        return prompt

    def _run(self, rows: list[_Row]) -> Iterator[None]:
        """Generates until all rows are finished, and stops after every token.

        What a row gets is computed from it alone, in the same way in any company: a window that slides is read again
        without the others.
        """
        logits, log_z = self._decoder.read([row.window for row in rows])
        while True:
            for row, own, z in zip(rows, logits, log_z, strict=False):
                if not row.finished:
                    row.take(own, float(z))
            yield
            growing = [not row.finished for row in rows]
            if not any(growing):
                return
            slid = [row.window if not row.finished and row.slide(self.context) else None for row in rows]
            last, positions = np.full(self.batch, self.tokenizer.eod), np.zeros(self.batch, np.int64)
            for place, row in enumerate(rows):
                if growing[place]:  # one that slid is read below: here it writes where its next token will
                    last[place] = row.window[-1]
                    positions[place] = len(row.window) - (slid[place] is None)
            wanted = [grows and window is None for grows, window in zip(growing, slid, strict=True)]
            if any(wanted):
                logits, log_z = self._decoder.write(last, positions, wanted)
            if any(slid):
                again, again_z = self._decoder.read(slid)
                read = np.array([window is not None for window in slid] + [False] * (self.batch - len(rows)))
                logits, log_z = np.where(read[:, None], again, logits), np.where(read, again_z, log_z)


class _Row:
    """One sequence while it grows.

    Args:
        prompt: what it begins with.
        sampling: the settings.
        repetition: how many equal prompts come before it.
        generator: that it belongs to.
        name: of the prompt, in messages.
    """

    def __init__(self, prompt: Prompt, sampling: Sampling, repetition: int, generator: Generator, name: str) -> None:
        self.window = list(prompt.context)
        """What the network sees."""
        self.text, self.finished = GrowingText(sampling.stop), ""
        self._tokenizer, self._openings = generator.tokenizer, generator.openings
        self._model, self._name = generator.model, name
        self._given = prompt.white_space.encode()  # what the next tokens have to begin with
        self._opening, self._tokens, self._log_probs = [], [], []
        self._there = set(prompt.context) - {self._tokenizer.eod}  # [eod] ends a text: that it began one is no penalty
        self._sampling, self._sampler = sampling, Sampler(sampling, number_of(prompt, repetition))

    def take(self, logits: np.ndarray, log_z: float) -> None:
        """One more token."""
        if not (np.isfinite(log_z) and np.isfinite(logits).all()):
            raise not_finite(self._model, f"token {1 + len(self._opening) + len(self._tokens)} after {self._name}")
        token = self._sampler(logits, self._there, self._openings(self._given) if self._given else None)
        self.window.append(token)
        if token != self._tokenizer.eod:
            self._there.add(token)
        new = self._tokenizer.decode_bytes([token])
        given, self._given = self._given, self._given[len(new) :]
        if given and len(new) <= len(given):
            self._opening.append(token)
            return
        self._tokens.append(token)
        self._log_probs.append(float(logits[token]) - log_z)
        self.text.add(new[len(given) :])
        if token == self._tokenizer.eod:
            self.finished = "eod"
        elif self.text.stopped:
            self.finished = "stop"
        elif len(self._tokens) == self._sampling.max_tokens:
            self.finished = "length"

    def slide(self, context: int) -> bool:
        """Forgets all but the last half of a window that is more than full; returns whether it was."""
        if len(self.window) <= context:
            return False
        self.window = self.window[-(context // 2) :]
        return True

    def result(self) -> Generation:
        return Generation(self.text.whole, self._tokens, self._log_probs, self.finished, self._opening)

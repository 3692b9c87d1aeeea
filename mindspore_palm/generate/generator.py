"""Generation: from prompts to texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator as PyGenerator
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
from mindspore_palm.generate.sampling import Sampler, Sampling, stream_number
from mindspore_palm.generate.text import GrowingText
from mindspore_palm.model.palm import PaLM

CONTEXT = 1024  # positions, by default

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


class Generator:
    """Generates text with a network.

    Args:
        palm: the network.
        tokenizer: the tokenizer that it was trained with.
        context: maximum number of tokens that the network sees, of prompt and generation together; 1,024 if None. A
            network has learned no more than the length it was trained on: ``data.seq_len`` of its ``config.yaml``. A
            prompt must leave room for one token. When a generation fills the context, its second half is re-read as
            the start of a new context, and generation continues.
        batch: number of sequences that are generated together.
        model: the network's name in messages.

    Raises:
        UserError: the tokenizer has tokens that the network lacks, or context or batch is too small.
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
        """Generates a text for each prompt, ``batch`` prompts at a time. The texts do not depend on each other.

        Args:
            prompts: texts, each of which begins a document; or token ids, up to a token boundary or to the end.
            sampling: the settings.

        Raises:
            UserError: a prompt is empty, too long, not text or has invalid tokens; or the logits are not finite.
        """
        sequences: list[_Sequence] = []
        seen: Counter[Prompt] = Counter()
        for number, prompt in enumerate(prompts):
            name = f"prompt {number + 1}" if len(prompts) > 1 else "the prompt"
            read = self._read(prompt, name)
            sequences.append(_Sequence(read, sampling, seen[read], self, name))
            seen[read] += 1
        for start in range(0, len(sequences), self.batch):
            for _ in self._run(sequences[start : start + self.batch]):
                pass
        return [sequence.result() for sequence in sequences]

    def stream(self, prompt: str | Prompt | Sequence[int], sampling: Sampling) -> PyGenerator[str, None, Generation]:
        """Streams the text for one prompt in pieces; joined, they are the text of ``__call__``.

        Returns:
            An iterator over the pieces; its return value is the Generation.

        Raises:
            UserError: as ``__call__``.
        """
        return self._pieces(_Sequence(self._read(prompt, "the prompt"), sampling, 0, self, "the prompt"))

    def _pieces(self, sequence: _Sequence) -> PyGenerator[str, None, Generation]:
        for _ in self._run([sequence]):
            if piece := sequence.text.piece(last=bool(sequence.finished)):
                yield piece
        return sequence.result()

    def _read(self, prompt: str | Prompt | Sequence[int], name: str) -> Prompt:
        """A prompt as the network reads it; a text gets an [eod] before it."""
        if isinstance(prompt, str):
            if not prompt:
                raise UserError(f"{name} is empty; write the beginning of a text")
            if len(prompt) > self.context * int(self.tokenizer.piece_bytes.max()):  # too long, without tokenizing it
                raise UserError(f"{name} has {len(prompt):,} characters, {self._too_long}")
            try:
                text = encode_prompt(self.tokenizer, prompt)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
            prompt = Prompt((self.tokenizer.eod, *text.context), text.white_space)
        elif not isinstance(prompt, Prompt):
            prompt = Prompt(tuple(int(token) for token in prompt))
        if not prompt.context:
            raise UserError(f"{name} is empty; write the beginning of a text")
        if outside := [token for token in prompt.context if not 0 <= token < self.tokenizer.vocab_size]:
            raise UserError(f"{name} holds {outside[0]}, and tokens go to {self.tokenizer.vocab_size - 1}")
        count = len(prompt.context) + len(self.tokenizer.encode(prompt.white_space))
        if count >= self.context:
            raise UserError(f"{name} has {count:,} tokens, {self._too_long}")
        return prompt

    def _run(self, sequences: list[_Sequence]) -> Iterator[None]:
        """Generates until all sequences are finished; yields after every token.

        A sequence gets the same bits alone and in any batch: a window that slides is re-read without the others.
        """
        logits, log_z = self._decoder.read([sequence.window for sequence in sequences])
        while True:
            for sequence, row, z in zip(sequences, logits, log_z, strict=False):
                if not sequence.finished:
                    sequence.append_token(row, float(z))
            yield
            growing = [not sequence.finished for sequence in sequences]
            if not any(growing):
                return
            slid = [one.window if not one.finished and one.slide(self.context) else None for one in sequences]
            last, positions = np.full(self.batch, self.tokenizer.eod), np.zeros(self.batch, np.int64)
            for i, sequence in enumerate(sequences):
                if growing[i]:  # one that slid is re-read below: here it writes to the slot of its next token
                    last[i] = sequence.window[-1]
                    positions[i] = len(sequence.window) - (slid[i] is None)
            wanted = [grows and window is None for grows, window in zip(growing, slid, strict=True)]
            if any(wanted):
                logits, log_z = self._decoder.write(last, positions, wanted)
            if any(slid):
                reread, reread_z = self._decoder.read(slid)
                is_reread = np.array([window is not None for window in slid] + [False] * (self.batch - len(sequences)))
                logits, log_z = np.where(is_reread[:, None], reread, logits), np.where(is_reread, reread_z, log_z)


class _Sequence:
    """One sequence while it is generated.

    Args:
        prompt: its beginning.
        sampling: the settings.
        repetition: the number of equal prompts before it.
        generator: the generator that it belongs to.
        name: the prompt's name in messages.
    """

    def __init__(self, prompt: Prompt, sampling: Sampling, repetition: int, generator: Generator, name: str) -> None:
        self.window = list(prompt.context)
        """The tokens that the network sees."""
        self.text = GrowingText(sampling.stop)
        self.finished: Literal["", "eod", "stop", "length"] = ""
        self._tokenizer, self._openings = generator.tokenizer, generator.openings
        self._model, self._name = generator.model, name
        self._given = prompt.white_space.encode()  # bytes that the next tokens must begin with
        self._opening: list[int] = []
        self._tokens: list[int] = []
        self._log_probs: list[float] = []
        self._seen = set(prompt.context) - {self._tokenizer.eod}  # no penalty for ending: [eod] is before every prompt
        self._sampling, self._sampler = sampling, Sampler(sampling, stream_number(prompt, repetition))

    def append_token(self, logits: np.ndarray, log_z: float) -> None:
        """Samples the next token and appends it."""
        if not (np.isfinite(log_z) and np.isfinite(logits).all()):
            raise not_finite(self._model, f"token {1 + len(self._opening) + len(self._tokens)} after {self._name}")
        token = self._sampler(logits, self._seen, self._openings(self._given) if self._given else None)
        self.window.append(token)
        if token != self._tokenizer.eod:
            self._seen.add(token)
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
        """Drops all but the last half of the context if the window is longer than it; returns whether it was."""
        if len(self.window) <= context:
            return False
        self.window = self.window[-(context // 2) :]
        return True

    def result(self) -> Generation:
        return Generation(self.text.whole, self._tokens, self._log_probs, self.finished, self._opening)

"""Generation: from prompts to texts."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator as PyGenerator
from collections.abc import Iterator, Sequence

from mindspore_palm.data.prompt import Prompt, encode_prompt
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.data.vocabulary import fit_vocabulary
from mindspore_palm.errors import UserError
from mindspore_palm.generate.decoder import Decoder
from mindspore_palm.generate.opening import Openings
from mindspore_palm.generate.places import Places
from mindspore_palm.generate.sampling import Sampling
from mindspore_palm.generate.sequence import Generation, GrowingSequence
from mindspore_palm.model.palm import PaLM

CONTEXT = 1024  # positions, by default


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
        sequences = self.begin_all(prompts, sampling)
        for _ in self.run(sequences):
            pass
        return [sequence.result() for sequence in sequences]

    def stream(self, prompt: str | Prompt | Sequence[int], sampling: Sampling) -> PyGenerator[str, None, Generation]:
        """Streams the text for one prompt in pieces; joined, they are the text of ``__call__``.

        Returns:
            An iterator over the pieces; its return value is the Generation.

        Raises:
            UserError: as ``__call__``.
        """
        return self._pieces(self.begin(self.read_prompt(prompt), sampling))

    def _pieces(self, sequence: GrowingSequence) -> PyGenerator[str, None, Generation]:
        for _ in self.run([sequence]):
            if piece := sequence.piece():
                yield piece
        return sequence.result()

    def begin_all(self, prompts: Sequence[str | Prompt | Sequence[int]], sampling: Sampling) -> list[GrowingSequence]:
        """A sequence for each prompt, none of which has grown yet; equal prompts get different draws.

        Raises:
            UserError: a prompt is empty, too long, not text or has invalid tokens.
        """
        sequences: list[GrowingSequence] = []
        seen: Counter[Prompt] = Counter()
        for number, prompt in enumerate(prompts):
            name = f"prompt {number + 1}" if len(prompts) > 1 else "the prompt"
            read = self.read_prompt(prompt, name)
            sequences.append(self.begin(read, sampling, seen[read], name))
            seen[read] += 1
        return sequences

    def begin(
        self, prompt: Prompt, sampling: Sampling, repetition: int = 0, name: str = "the prompt", alternatives: int = 0
    ) -> GrowingSequence:
        """A sequence that has not grown yet; the arguments are those of ``GrowingSequence``."""
        return GrowingSequence(
            prompt, sampling, repetition, self.tokenizer, self.openings, name, self.model, alternatives
        )

    def places(self) -> Places:
        """The ``batch`` places of its decoder. Only one user at a time may have them."""
        return Places(self._decoder, self.context, self.tokenizer.eod)

    def run(self, sequences: Sequence[GrowingSequence]) -> Iterator[None]:
        """Generates until all sequences are finished; yields after every step. One that ends makes room for the next.

        A sequence gets the same bits alone and in any batch: a window that slides is re-read without the others.
        """
        places, waiting = self.places(), deque(sequences)
        while waiting or places.sequences:
            while waiting and places.free:
                places.enter(waiting.popleft())
            for sequence, logits, log_z in places.step():
                sequence.append_token(logits, log_z)
                if sequence.finished:
                    places.leave(sequence)
            yield

    def read_prompt(self, prompt: str | Prompt | Sequence[int], name: str = "the prompt") -> Prompt:
        """A prompt as the network reads it; a text gets an [eod] before it.

        Raises:
            UserError: it is empty, too long, not text or has invalid tokens.
        """
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

"""A text that a user and a model write in turns: its last tokens, which fit the model's context."""

from __future__ import annotations

from collections.abc import Sequence

from mindspore_palm.data.prompt import Prompt, encode_prompt
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.errors import UserError


class Transcript:
    """The text so far. The beginning of one that no longer fits the context is dropped.

    Args:
        tokenizer: the model's tokenizer.
        context: maximum number of tokens that the model sees.
    """

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self._tokenizer, self._context = tokenizer, context
        self._tokens = [tokenizer.eod]

    def add_text(self, text: str) -> Prompt:
        """Appends what the user typed; returns the prompt that the model continues.

        Raises:
            UserError: it takes half the context or more, or is not text; the text so far is unchanged.
        """
        new, half = encode_prompt(self._tokenizer, text), self._context // 2
        white_space = len(self._tokenizer.encode(new.white_space))
        if (count := len(new.context) + white_space) >= half:
            raise UserError(f"the line has {count:,} tokens; at most {half - 1:,} fit")
        self._tokens += new.context
        if len(self._tokens) + white_space >= self._context:
            self._tokens = self._tokens[-half:]
        return Prompt(tuple(self._tokens), new.white_space)

    def add_tokens(self, tokens: Sequence[int]) -> None:
        """Appends what the model wrote, from the boundary of the prompt on."""
        self._tokens += tokens
        if len(self._tokens) >= self._context:
            self._tokens = self._tokens[-(self._context // 2) :]

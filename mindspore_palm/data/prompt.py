"""The border between a prompt and what follows it: one for training on pairs, for scoring and for generation.

White space at the end of a prompt belongs to what follows. A tokenizer of words with the white space before them writes
"return self" as "return" and " self"; a model that is given "return" and " " sees two tokens that no text has side by
side. So the border is before that white space, and what follows begins with it:

    prompt "return ", then "self"     tokens of "return", then of " self"
    prompt "return", then " self"     tokens of "return", then of " self"

The border depends on the prompt alone. So all choices of a question have the same context, and a generation continues
from it, too. What follows is made into tokens by itself: no token runs over the border.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mindspore_palm.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """A prompt as a model gets it."""

    context: tuple[int, ...]
    """Tokens before the border."""
    white_space: str = ""
    """The end of the prompt, after the border: what follows begins with it."""


def split_prompt(prompt: str) -> tuple[str, str]:
    """A prompt's text before the border and its white space after it; either may be empty."""
    before = prompt.rstrip()
    return before, prompt[len(before) :]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> Prompt:
    """A prompt as tokens up to its border, without [eod] before them.

    Raises:
        UserError: the text holds a lone surrogate.
    """
    before, white_space = split_prompt(prompt)
    return Prompt(tuple(tokenizer.encode(before)), white_space)


def encode_pairs(tokenizer: Tokenizer, pairs: Iterable[tuple[str, str]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens before and after the border, without [eod].

    Args:
        tokenizer: of the model.
        pairs: prompt and what follows it, as texts.

    Returns:
        For each pair int32 [n], the context, and int32 [m], what follows with the prompt's last white space before it.

    Raises:
        UserError: a text holds a lone surrogate.
    """
    texts = []
    for prompt, text in pairs:
        before, white_space = split_prompt(prompt)
        texts += [before, white_space + text]
    tokens = [np.array(ids, np.int32) for ids in tokenizer.encode_batch(texts)]
    return list(zip(tokens[::2], tokens[1::2], strict=True))

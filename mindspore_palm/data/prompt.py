"""The boundary between a prompt and its continuation, shared by training on pairs, scoring and generation.

White space at the end of a prompt belongs to the continuation. The tokenizer keeps a word together with the white space
before it, so it encodes "return self" as "return" and " self". A model given "return" and " " would see two tokens that
never occur side by side in text. So the boundary is before that white space, and the continuation starts with it:

    prompt "return ", continuation "self"     tokens of "return", then of " self"
    prompt "return", continuation " self"     tokens of "return", then of " self"

The boundary depends on the prompt alone. So all choices of a question have the same context, and generation continues
from that context too. The continuation is encoded separately: no token crosses the boundary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mindspore_palm.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """A prompt as a model receives it."""

    context: tuple[int, ...]
    """Tokens before the boundary."""
    white_space: str = ""
    """The white space at the end of the prompt: the continuation starts with it."""


def split_prompt(prompt: str) -> tuple[str, str]:
    """A prompt's text before the boundary, and its white space after the boundary; either may be empty."""
    before = prompt.rstrip()
    return before, prompt[len(before) :]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> Prompt:
    """Encodes a prompt up to its boundary, without a leading [eod].

    Raises:
        UserError: the text holds a lone surrogate.
    """
    before, white_space = split_prompt(prompt)
    return Prompt(tuple(tokenizer.encode(before)), white_space)


def encode_pairs(tokenizer: Tokenizer, pairs: Iterable[tuple[str, str]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Encodes prompts and their continuations, without [eod].

    Args:
        tokenizer: the model's tokenizer.
        pairs: texts of a prompt and its continuation.

    Returns:
        For each pair the context, int32 [n], and the continuation, int32 [m], which starts with the white space at the
        end of the prompt.

    Raises:
        UserError: a text holds a lone surrogate.
    """
    texts = []
    for prompt, text in pairs:
        before, white_space = split_prompt(prompt)
        texts += [before, white_space + text]
    tokens = tokenizer.encode_batch(texts)
    return list(zip(tokens[::2], tokens[1::2], strict=True))

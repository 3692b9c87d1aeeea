"""Fit of a tokenizer to a model: with fewer tokens than the model has, rows become padding; more are refused."""

from __future__ import annotations

from pathlib import Path

import sentencepiece

from mindspore_palm.config import PaLMConfig
from mindspore_palm.data.byte_level import ByteLevelModel, is_tokenizer_json
from mindspore_palm.errors import UserError


def fit_vocabulary(config: PaLMConfig, tokens: int, tokenizer: str | Path) -> PaLMConfig:
    """Configuration of a model with a tokenizer's vocabulary, for conversion, evaluation, generation and fine-tuning.

    Rows of the embedding table without a token become padding, like the rows that ``vocab_multiple`` adds: they never
    get any probability and are never generated. The table keeps its size.

    Args:
        config: configuration of the model.
        tokens: number of tokens of the tokenizer.
        tokenizer: name of the tokenizer in the message.

    Raises:
        UserError: the tokenizer has tokens that the model does not have.
    """
    if tokens > config.vocab_size:
        raise UserError(
            f"{tokenizer} has {tokens:,} tokens and the model only {config.vocab_size:,}: "
            "it is not the tokenizer that the model was trained with; use that one"
        )
    if tokens == config.vocab_size:
        return config
    return config.model_copy(update={"vocab_size": tokens, "vocab_multiple": config.padded_vocab})


def padding_note(config: PaLMConfig, tokens: int, tokenizer: str | Path) -> str:
    """Message about rows of a model's table for which a tokenizer has no token; empty if there are none."""
    if tokens >= config.vocab_size:
        return ""
    return (
        f"{tokenizer} has {tokens:,} tokens and the model {config.vocab_size:,}: the other rows of its table are "
        "treated as padding, without probability"
    )


def count_tokens(tokenizer: Path | bytes) -> int | None:
    """Number of tokens of a tokenizer, given as a file or its content; None if it is neither kind of tokenizer."""
    model = sentencepiece.SentencePieceProcessor()
    try:
        content = tokenizer if isinstance(tokenizer, bytes) else tokenizer.read_bytes()
        if is_tokenizer_json(content):
            return ByteLevelModel(content, str(tokenizer) if isinstance(tokenizer, Path) else "tokenizer").vocab_size
        return model.vocab_size() if content and model.LoadFromSerializedProto(content) else None
    except (OSError, RuntimeError, UserError):
        return None

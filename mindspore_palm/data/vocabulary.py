"""One rule for a tokenizer beside a model: fewer tokens than rows leave padding, more tokens are refused."""

from __future__ import annotations

from pathlib import Path

import sentencepiece

from mindspore_palm.config import PaLMConfig
from mindspore_palm.errors import UserError


def fit_vocabulary(config: PaLMConfig, tokens: int, tokenizer: str | Path) -> PaLMConfig:
    """The configuration of a model as a tokenizer uses it; conversion, evaluation, generation and fine-tuning ask it.

    Rows of the embedding table without a token are padding: they get no probability anywhere and are never generated,
    like the rows that ``vocab_multiple`` adds. The table keeps its size.

    Args:
        config: of the model.
        tokens: of the tokenizer.
        tokenizer: its name in the message.

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
    """A sentence about rows of a model that a tokenizer has no tokens for; empty if there are none."""
    if tokens >= config.vocab_size:
        return ""
    return (
        f"{tokenizer} has {tokens:,} tokens and the model {config.vocab_size:,}: the other rows of its table are "
        "treated as padding, without probability"
    )


def count_tokens(tokenizer: Path | bytes) -> int | None:
    """Tokens of a SentencePiece model, a file or its content; None where it is none."""
    model = sentencepiece.SentencePieceProcessor()
    try:
        content = tokenizer if isinstance(tokenizer, bytes) else tokenizer.read_bytes()
        return model.vocab_size() if content and model.LoadFromSerializedProto(content) else None
    except (OSError, RuntimeError):
        return None

"""What travels between formats, and what a format is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mindspore_palm.config import PaLMConfig
from mindspore_palm.errors import UserError


@dataclass(frozen=True)
class Model:
    """A PaLM outside of any network."""

    config: PaLMConfig
    weights: dict[str, np.ndarray]
    """By the names of the checkpoint format, float32."""
    tokenizer: bytes | None = None
    """A SentencePiece model, where there is one."""
    seq_len: int | None = None
    """Tokens that it was trained on at once, where that is known."""


@dataclass(frozen=True)
class Options:
    """What a file may leave open."""

    vocab_size: int | None = None
    """Real tokens, where a table has rows that only pad it; None: all rows."""
    norm_scale: str | None = None
    """How the norms' scales are stored: around_zero or around_one; None: as the format has it today."""
    shape: tuple[int, int] = (2, 64)
    """Sequences and tokens of each: of an exported graph, and of the random tokens that are compared."""
    shard_bytes: int = 5 * 10**9
    """Size of a file at most, where a format has several."""


class Format(Protocol):
    """A way to keep a PaLM in a file or folder."""

    def read(self, path: Path, options: Options) -> Model:
        """The model in a file or folder.

        Raises:
            UserError: it is damaged, or not a PaLM that can be had exactly; says why.
        """

    def write(self, model: Model, path: Path, options: Options) -> None:
        """Writes a model.

        Raises:
            UserError: the format cannot hold this model exactly; says why.
        """

    def logits(self, path: Path, tokens: np.ndarray, options: Options) -> np.ndarray:
        """What the model in a file makes of int32 [B, S]: float32 [B, S, vocab_size], by the format's own code."""


def as_float32(array: np.ndarray, where: str) -> np.ndarray:
    """Weights in float32, of the same values.

    Raises:
        UserError: they are of another kind than float32, float16 and bfloat16.
    """
    if array.dtype not in (np.float32, np.float16) and array.dtype.name != "bfloat16":
        raise UserError(f"{where} is {array.dtype}; weights must be float32, float16 or bfloat16, not quantised")
    return array.astype(np.float32)


def require(config: PaLMConfig, who: str, hint: str = "", **wanted: Any) -> None:
    """Sees that a model has the switches that a format stands for.

    Raises:
        UserError: names what differs and what a model must be trained with to be held exactly.
    """
    differs = [
        f"model.{name}={setting(value)} (here {setting(getattr(config, name))})"
        for name, value in wanted.items()
        if getattr(config, name) != value
    ]
    if differs:
        raise UserError(
            f"{who} cannot hold this model exactly: a model for it is trained with {', '.join(differs)}{hint}"
        )


def setting(value: Any) -> str:
    """A value as it is written behind ``model.name=``."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def vocabulary(rows: int, options: Options, who: str) -> dict[str, int]:
    """The settings of a table of so many rows, of which the last may only pad it.

    Raises:
        UserError: there are more tokens than rows.
    """
    tokens = options.vocab_size or rows
    if tokens > rows:
        raise UserError(f"{who}: the table has {rows:,} rows; set --vocab-size to at most that")
    return {"vocab_size": tokens, "vocab_multiple": 1 if tokens == rows else rows}


def check_scales(scales: list[np.ndarray], norm_scale: str | None, default: str, who: str) -> str:
    """How norms' scales are stored. Guessing wrong would be silent, so what looks unusual must be said.

    Raises:
        UserError: the scales do not look like the default, and nothing was said.
    """
    mean = float(np.mean([scale.mean() for scale in scales]))
    looks = "around_zero" if abs(mean) < 0.5 else "around_one"
    if norm_scale is None and looks != default:
        raise UserError(
            f"{who}: the norms' scales lie around {mean:.2f}, and today they are stored {default}; older versions "
            f"stored them the other way: say --norm-scale around_one or --norm-scale around_zero"
        )
    return norm_scale or default

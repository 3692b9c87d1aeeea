"""What travels between formats, and what a format is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mindspore_palm.config import PaLMConfig
from mindspore_palm.errors import UserError

SEQ_LEN = 2048  # of PaLM, where nothing else is known


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
    notes: tuple[str, ...] = ()
    """For the user, a sentence each: what the source leaves open and what was taken instead, and what was left out."""


@dataclass(frozen=True)
class Computed:
    """Logits of a file, and the code that computed them: a check is worth what it does not share."""

    logits: np.ndarray
    """float32 [B, S, vocab_size]."""
    by: str
    """The code, for the user."""


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

    is_read: bool
    """Whether a model comes back out of it."""

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

    def logits(self, path: Path, tokens: np.ndarray, options: Options) -> Computed:
        """Logits of int32 [B, S] by the model in a file: by the format's own package, with the file loaded into it,
        or, where there is none, by NumPy from the tensors of the file.
        """


def as_float32(array: np.ndarray, where: str) -> np.ndarray:
    """Weights in float32, of the same values.

    Raises:
        UserError: they are of another kind than float32, float16 and bfloat16.
    """
    if array.dtype not in (np.float32, np.float16) and array.dtype.name != "bfloat16":
        raise UserError(f"{where} is {array.dtype}; weights must be float32, float16 or bfloat16, not quantised")
    return array.astype(np.float32)


def check_finite(weights: Mapping[str, np.ndarray], where: str) -> None:
    """Refuses a model that no comparison of logits can judge.

    Raises:
        UserError: a weight holds what is no number; names it.
    """
    for name, array in weights.items():
        if broken := int(array.size - np.isfinite(array).sum()):
            raise UserError(
                f"{where}: {name} holds {broken:,} of {array.size:,} numbers that are not finite (NaN or infinity): "
                "its training failed; take an earlier checkpoint"
            )


def require(config: PaLMConfig, who: str, hint: str = "", *, supported: Collection[str] = (), **fixed: Any) -> None:
    """Checks that a format can hold a model: every field that is no size has PaLM's value, or one that is said here.

    Args:
        config: of the model.
        who: the format, for the message.
        hint: what else can be done, for the end of the message.
        supported: names of the fields that the format holds at any value.
        fixed: the values of the fields that the format has otherwise than PaLM.

    Raises:
        UserError: names what differs and what a model must be trained with to be held exactly.
    """
    differs = [
        f"model.{name}={setting(value)} (here {setting(getattr(config, name))})"
        for name, value in (config.switches() | fixed).items()
        if name not in supported and getattr(config, name) != value
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

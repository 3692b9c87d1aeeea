"""The model that is converted, and the interface of a format."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mindspore_palm.checkpoint.training import Training
from mindspore_palm.config import PaLMConfig
from mindspore_palm.errors import UserError

SEQ_LEN = 2048  # of PaLM; used if the source does not record its own


@dataclass(frozen=True)
class Model:
    """A PaLM as arrays, without a network."""

    config: PaLMConfig
    weights: dict[str, np.ndarray]
    """float32, by the names of the checkpoint format."""
    tokenizer: bytes | None = None
    """A serialized tokenizer; None if there is none."""
    seq_len: int | None = None
    """Training sequence length in tokens; None if unknown."""
    notes: tuple[str, ...] = ()
    """Sentences for the user: what was assumed because the source leaves it open, and what was left out."""
    training: Training | None = None
    """As its run recorded it; None if the source does not say."""


@dataclass(frozen=True)
class Computed:
    """Logits of a file, and the code that computed them: a check is worth the code that its sides do not share."""

    logits: np.ndarray
    """float32 [B, S, vocab_size]."""
    by: str
    """Name of the code, for the user."""


@dataclass(frozen=True)
class Options:
    """Choices of the user: what a file leaves open, and sizes of what is written."""

    vocab_size: int | None = None
    """Number of real tokens, if the table has rows that only pad it; None for all rows."""
    norm_scale: str | None = None
    """Convention of stored norm scales: around_zero or around_one; None for the format's current convention."""
    shape: tuple[int, int] = (2, 64)
    """Batch and sequence length of an exported graph, and of the random tokens that are compared."""
    shard_bytes: int = 5 * 10**9
    """Maximum size of a file, in formats with shards."""
    device: str = "auto"
    """Device type that computes the logits to compare, or auto."""


class Format(Protocol):
    """A format of files or folders that store a PaLM."""

    @property
    def is_read(self) -> bool:
        """Whether the format can be read back."""

    def read(self, path: Path, options: Options) -> Model:
        """Reads the model in a file or folder.

        Raises:
            UserError: it is damaged, or cannot be represented exactly as a PaLM; the message says why.
        """

    def write(self, model: Model, path: Path, options: Options) -> None:
        """Writes a model.

        Raises:
            UserError: the format cannot hold this model exactly; the message says why.
        """

    def logits(self, path: Path, tokens: np.ndarray, options: Options) -> Computed:
        """Logits of the model in a file: int32 [B, S] to float32 [B, S, vocab_size].

        They are computed by the format's own package, which loads the file. If there is none, NumPy computes them from
        the file's tensors.
        """


def as_float32(array: np.ndarray, where: str) -> np.ndarray:
    """Casts weights to float32 without loss.

    Raises:
        UserError: their dtype is not float32, float16 or bfloat16.
    """
    if array.dtype not in (np.float32, np.float16) and array.dtype.name != "bfloat16":
        raise UserError(f"{where} is {array.dtype}; weights must be float32, float16 or bfloat16, not quantised")
    return array.astype(np.float32)


def check_finite(weights: Mapping[str, np.ndarray], where: str) -> None:
    """Checks that all weights are finite, as no comparison of logits can judge a model whose weights are not.

    Raises:
        UserError: names a weight with NaN or infinity.
    """
    for name, array in weights.items():
        if broken := int(array.size - np.isfinite(array).sum()):
            raise UserError(
                f"{where}: {name} holds {broken:,} of {array.size:,} numbers that are not finite (NaN or infinity): "
                "its training failed; take an earlier checkpoint"
            )


def require(config: PaLMConfig, who: str, hint: str = "", *, supported: Collection[str] = (), **fixed: Any) -> None:
    """Checks that a format can hold a model: every field that is not a size has PaLM's value, unless stated here.

    Args:
        config: the model's configuration.
        who: name of the format, for the message.
        hint: another way out, appended to the message.
        supported: names of the fields that the format holds at any value.
        fixed: fields whose value in the format is not PaLM's.

    Raises:
        UserError: names each field that differs, and the value to train with for an exact copy.
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
    """A value as it is written after ``model.name=``."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def vocabulary(rows: int, options: Options, who: str) -> dict[str, int]:
    """Settings for a table of ``rows`` rows, the last of which may be padding.

    Raises:
        UserError: the user asks for more tokens than rows.
    """
    tokens = options.vocab_size or rows
    if tokens > rows:
        raise UserError(f"{who}: the table has {rows:,} rows; set --vocab-size to at most that")
    return {"vocab_size": tokens, "vocab_multiple": 1 if tokens == rows else rows}


def check_scales(scales: list[np.ndarray], norm_scale: str | None, default: str, who: str) -> str:
    """Convention of stored norm scales. A wrong guess would be silent, so unusual scales need an option.

    Raises:
        UserError: the scales do not look like the default, and ``norm_scale`` is None.
    """
    mean = float(np.mean([scale.mean() for scale in scales]))
    looks = "around_zero" if abs(mean) < 0.5 else "around_one"
    if norm_scale is None and looks != default:
        raise UserError(
            f"{who}: the norms' scales have a mean of {mean:.2f}, and today they are stored {default}; older versions "
            f"stored them the other way: set --norm-scale around_one or --norm-scale around_zero"
        )
    return norm_scale or default

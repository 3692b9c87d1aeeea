"""Where a run stands, as the JSON of a checkpoint: with weights and optimizer state, all that decides the next step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mindspore_palm.data.order import Segment, merge_ranges
from mindspore_palm.errors import UserError
from mindspore_palm.files import write_json

REWINDS = "rewinds.json"


@dataclass(frozen=True)
class Rewind:
    """A decision to go back, to leave out part of the data, or both."""

    reason: str
    """In words: the spike with its figures, or that it was asked for."""
    at: int
    """Steps that had been taken when it was decided."""
    to: int
    """Steps that had been taken at the checkpoint to go back to; 0 for the initial weights."""
    skip: tuple[int, int]
    """Sequences of the training text, in the order of the epochs, that are left out: from, and up to."""
    asked: str = ""
    """The arguments that asked for it; empty for a spike."""
    order: str = ""
    """Names the order in which ``skip`` counts; see ``order_name``."""

    @staticmethod
    def from_json(values: dict[str, Any]) -> Rewind:
        """What ``asdict`` gave."""
        known = {name: values[name] for name in Rewind.__dataclass_fields__ if name in values}
        return Rewind(**{**known, "skip": tuple(values["skip"])})


@dataclass
class Progress:
    """What a run has done."""

    step: int = 0
    """Steps taken."""
    tokens: int = 0
    """Trained on."""
    not_finite: int = 0
    """Steps in a row, up to the last one, whose loss or gradients were not finite."""
    losses: list[float] = field(default_factory=list)
    """Of the last steps that were no outliers: the running statistics by which spikes are found."""
    norms: list[float] = field(default_factory=list)
    """Logarithms of their gradient norms."""
    outliers: int = 0
    """Steps in a row, up to the last one, that were outliers."""
    rewinds: list[Rewind] = field(default_factory=list)
    """All decisions so far, the oldest first."""
    segments: tuple[Segment, ...] = ()
    """Which text steps take; empty as long as nobody knows."""
    sound: int = 0
    """The newest step whose weights have given a finite loss and finite gradients: those of the step after it."""
    base: str = ""
    """Names the content of the model that fine-tuning started from."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Progress:
        """What ``to_json`` gave, as it was or read from JSON; what an older version did not know is as at the start."""
        known = {name: values[name] for name in Progress.__dataclass_fields__ if name in values}
        sound = max(0, known.get("step", 0) - known.get("not_finite", 0) - 1)
        return Progress(
            **{
                "sound": sound,
                **known,
                "rewinds": [Rewind.from_json(rewind) for rewind in known.get("rewinds", ())],
                "segments": tuple(Segment.from_json(segment) for segment in known.get("segments", ())),
            }
        )


def skipped(rewinds: Sequence[Rewind], order: str = "") -> list[tuple[int, int]]:
    """The sequences of an order that decisions leave out, as rising ranges that do not touch."""
    return merge_ranges([rewind.skip for rewind in rewinds if rewind.order == order])


def read_rewinds(folder: Path) -> list[Rewind]:
    """The decisions of a run, also those that no checkpoint knows yet.

    Raises:
        UserError: the file was altered.
    """
    file = folder / REWINDS
    try:
        return [Rewind.from_json(values) for values in json.loads(file.read_bytes())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{file} was altered and cannot be read; mend it, or begin anew by --overwrite") from None


def write_rewinds(folder: Path, rewinds: Sequence[Rewind]) -> None:
    """Writes the decisions of a run: from here on they hold, whatever happens.

    Raises:
        OSError: the file could not be written.
    """
    write_json(folder / REWINDS, [asdict(rewind) for rewind in rewinds])

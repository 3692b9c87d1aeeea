"""Progress of a run, stored in state.json: with weights and optimizer state, it determines the next step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mindspore_palm.data.order import Segment, merge_ranges
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import REWINDS
from mindspore_palm.files import write_json


@dataclass(frozen=True)
class Rewind:
    """A decision to go back to a checkpoint, to skip part of the data, or both."""

    reason: str
    """Text: the spike with its numbers, or the command that asked for it."""
    at: int
    """Steps taken when it was decided."""
    to: int
    """Step of the checkpoint to go back to; 0 for the initial weights."""
    skip: tuple[int, int]
    """Range of sequences to skip, start and end, counted in the order of the training text over all epochs."""
    asked: str = ""
    """Arguments that asked for it; empty for a spike."""
    order: str = ""
    """Name of the order in which ``skip`` counts; see ``order_name``."""

    @staticmethod
    def from_json(values: dict[str, Any]) -> Rewind:
        """Inverse of ``asdict``."""
        known = {name: values[name] for name in Rewind.__dataclass_fields__ if name in values}
        return Rewind(**{**known, "skip": tuple(values["skip"])})


@dataclass
class Progress:
    """Progress of a run."""

    step: int = 0
    """Steps taken."""
    tokens: int = 0
    """Tokens trained on."""
    not_finite: int = 0
    """Consecutive steps, up to the last one, whose loss or gradients were not finite."""
    losses: list[float] = field(default_factory=list)
    """Losses of the last steps that were not outliers; spikes are detected against them."""
    norms: list[float] = field(default_factory=list)
    """Logarithms of the gradient norms of these steps."""
    outliers: int = 0
    """Consecutive steps, up to the last one, that were outliers."""
    rewinds: list[Rewind] = field(default_factory=list)
    """All decisions so far, oldest first."""
    segments: tuple[Segment, ...] = ()
    """Which text the steps train on; empty as long as it is unknown."""
    sound: int = 0
    """The newest step whose weights are known to be good: the step after it had a finite loss and finite gradients."""
    loss_scale: float = 0.0
    """Loss scale of the next step in float16; 0 as long as there is none."""
    scale_steps: int = 0
    """Steps taken with this scale, of those that decide whether it grows."""
    base: str = ""
    """Identity of the model that fine-tuning started from."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Progress:
        """Inverse of ``to_json``; values that an older version did not store get their defaults."""
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
    """Ranges of sequences that decisions skip in an order, ascending and disjoint."""
    return merge_ranges([rewind.skip for rewind in rewinds if rewind.order == order])


def read_rewinds(folder: Path) -> list[Rewind]:
    """The decisions of a run, including those that no checkpoint contains yet.

    Raises:
        UserError: the file was altered.
    """
    file = folder / REWINDS
    try:
        return [Rewind.from_json(values) for values in json.loads(file.read_bytes())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{file} was altered and cannot be read; fix it, or start over with --overwrite") from None


def write_rewinds(folder: Path, rewinds: Sequence[Rewind]) -> None:
    """Writes the decisions of a run; from here on they hold, even if the run is killed.

    Raises:
        OSError: the file could not be written.
    """
    write_json(folder / REWINDS, [asdict(rewind) for rewind in rewinds])

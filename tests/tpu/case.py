"""What is compiled: a training step on a mesh of chips."""

from __future__ import annotations

from dataclasses import dataclass

from reference.palm import Shape


@dataclass(frozen=True)
class Case:
    """A training step of one pass on a mesh of chips."""

    shape: Shape
    length: int
    """Tokens of a sequence."""
    sequences: int
    """Of one data rank."""
    pods: int
    data: int
    model: int
    recompute: str
    """none, attention, minimal or block, as in ``reference.pods``."""
    topology: str
    """Of one pod."""

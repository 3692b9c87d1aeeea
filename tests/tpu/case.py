"""What is compiled: a training step on a mesh of chips."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A training step of one pass on a mesh of chips."""

    layers: int
    d_model: int
    heads: int
    head_dim: int
    d_ff: int
    vocab: int
    padded_vocab: int
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

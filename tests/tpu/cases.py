"""What is compiled for TPU v4: PaLM's sizes on meshes of chips."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A training step on a mesh. ``sequences`` are those of one data rank; ``topology`` is that of one pod."""

    layers: int
    d_model: int
    heads: int
    head_dim: int
    d_ff: int
    vocab: int
    padded_vocab: int
    length: int
    sequences: int
    pods: int
    data: int
    model: int
    recompute: str
    topology: str

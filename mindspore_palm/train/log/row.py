"""A row of metrics.csv."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Row:
    """One row of metrics.csv: one optimizer step."""

    step: int
    """Counts from 1: how many steps had been taken when the row was written."""
    loss: float
    """What is trained on: cross-entropy + z-loss, in nats a token."""
    cross_entropy: float
    """Nats a token on this step's batch, before its update."""
    learning_rate: float
    gradient_norm: float
    """Global norm before the clip."""
    skipped: int
    """1 if the loss or a gradient was not finite and nothing was changed."""
    tokens: int
    """Trained on since the start."""
    seconds: float
    """Of this step, reading the batch included."""
    tokens_per_second: float
    mfu: float
    """Model FLOPs utilisation, as a fraction of the machine's peak."""
    hfu: float
    """Hardware FLOPs utilisation: with what the backward pass computes again."""
    validation_loss: float | None = None
    """Held-out cross-entropy after this step, nats a token; empty where none was measured."""
    validation_bits_per_byte: float | None = None

"""loss.png: how a run has learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mindspore_palm.figures import make_figure, save_figure
from mindspore_palm.train.log.row import Row


def draw_loss(
    rows: Sequence[Row], reference: float | None, file: Path, rewinds: Sequence[tuple[int, str]] = ()
) -> None:
    """Training loss and held-out loss over tokens, in nats a token and in bits a byte; where the run went back."""
    tokens = [row.tokens / 1e6 for row in rows]
    losses = [row.cross_entropy for row in rows]
    evaluated = [row for row in rows if row.validation_loss is not None]
    at = [row.tokens / 1e6 for row in evaluated]
    figure, (left, right) = make_figure(2, 11, 4.2)
    left.plot(tokens, losses, color="#9db8d6", linewidth=0.8, label="training, each step")
    left.plot(tokens, _smooth(losses), color="#1f4e8c", linewidth=1.8, label="training, smoothed")
    left.plot(at, [row.validation_loss for row in evaluated], "o-", color="#c8501e", label="held out")
    left.set(xlabel="million tokens", ylabel="cross-entropy, nats a token", title="Loss")
    for step, why in rewinds:
        left.axvline(
            rows[min(step, len(rows)) - 1].tokens / 1e6 if step else 0.0, color="#b00020", linestyle=":", label=why
        )
    right.plot(at, [row.validation_bits_per_byte for row in evaluated], "o-", color="#c8501e", label="this model")
    if reference is not None:
        right.axhline(reference, color="#555555", linestyle="--", label=f"gzip -9: {reference:.3f}")
    right.set(xlabel="million tokens", ylabel="bits a byte", title="Held-out text")
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    save_figure(figure, file, dpi=110)


def _smooth(values: Sequence[float], keep: float = 0.95) -> list[float]:
    """Exponential mean that is not biased towards its start; what is not finite is passed over."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        if abs(value) < float("inf"):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight if weight else float("nan"))
    return out

"""loss.png: the loss curves of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mindspore_palm.figures import make_figure, save_figure
from mindspore_palm.train.log.metrics import MetricsRow


def draw_loss(
    rows: Sequence[MetricsRow], reference: float | None, file: Path, rewinds: Sequence[tuple[int, str]] = ()
) -> None:
    """Draws training and held-out loss over tokens, in nats/token and bits/byte, and where the run went back.

    Args:
        rows: of metrics.csv; at least one.
        reference: bits/byte of ``gzip -9`` on the held-out text; None draws none.
        file: the PNG to write.
        rewinds: steps gone back to, and why.
    """
    tokens = [row.tokens / 1e6 for row in rows]
    losses = [row.cross_entropy for row in rows]
    evaluated = [row for row in rows if row.validation_loss is not None]
    held_out_losses = [row.validation_loss for row in rows if row.validation_loss is not None]
    bits_per_byte = [row.validation_bits_per_byte for row in rows if row.validation_bits_per_byte is not None]
    evaluated_at = [row.tokens / 1e6 for row in evaluated]
    figure, (left, right) = make_figure(2, 11, 4.2)
    left.plot(tokens, losses, color="#9db8d6", linewidth=0.8, label="training, each step")
    left.plot(tokens, _smooth(losses), color="#1f4e8c", linewidth=1.8, label="training, smoothed")
    left.plot(evaluated_at, held_out_losses, "o-", color="#c8501e", label="held out")
    left.set(xlabel="million tokens", ylabel="cross-entropy, nats/token", title="Loss")
    for step, why in rewinds:
        left.axvline(
            rows[min(step, len(rows)) - 1].tokens / 1e6 if step else 0.0, color="#b00020", linestyle=":", label=why
        )
    right.plot(evaluated_at, bits_per_byte, "o-", color="#c8501e", label="this model")
    if reference is not None:
        right.axhline(reference, color="#555555", linestyle="--", label=f"gzip -9: {reference:.3f}")
    right.set(xlabel="million tokens", ylabel="bits/byte", title="Held-out text")
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    save_figure(figure, file, dpi=110)


def _smooth(values: Sequence[float], decay: float = 0.95) -> list[float]:
    """Exponential moving average, corrected for its start; values that are not finite are ignored."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        if abs(value) < float("inf"):
            total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        smoothed.append(total / weight if weight else float("nan"))
    return smoothed

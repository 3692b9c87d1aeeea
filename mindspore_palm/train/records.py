"""What a run writes while it goes: metrics.csv, TensorBoard files and loss.png."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from mindspore_palm.data.atomic import write_atomically


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
    validation_loss: float | None = None
    """Held-out cross-entropy after this step, nats a token; empty where none was measured."""
    validation_bits_per_byte: float | None = None


class Records:
    """Appends rows to metrics.csv and TensorBoard, and draws them; a context that closes both.

    TensorBoard's events are written here and now: with the usual writer, a thread, a full disk would stop the run dead.

    Args:
        folder: of the run.
        reference: bits a byte of ``gzip -9`` on the held-out text, drawn beside the model's.
    """

    def __init__(self, folder: Path, reference: float | None) -> None:
        self.folder, self.reference = folder, reference
        self.rows: list[Row] = []
        self._table, board = folder / "metrics.csv", folder / "tensorboard"
        # "x": of two runs that start in one folder at once, the second ends here
        self._file = open(self._table, "x", newline="", encoding="utf-8")  # noqa: SIM115 - open for the run
        self._csv = csv.DictWriter(self._file, [field.name for field in fields(Row)])
        self._csv.writeheader()
        board.mkdir(exist_ok=True)
        self._board_file, self._board = board, EventsWriter(str(board / "events"))

    def __enter__(self) -> Records:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(*([OSError] if kind else [])):  # what ended the run is said, not what follows from it
            self.close()

    def add(self, row: Row) -> None:
        """Writes a row; it is in the files when this returns.

        Raises:
            OSError: a file could not be written; says which.
        """
        self.rows.append(row)
        values = asdict(row)
        with _naming(self._table):
            self._csv.writerow({name: _text(value) for name, value in values.items()})
            self._file.flush()
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if name != "step" and value is not None
        ]
        with _naming(self._board_file):
            self._board.write_event(Event(wall_time=time.time(), step=row.step, summary=Summary(value=scalars)))
            self._board.flush()

    def draw(self) -> None:
        """Writes loss.png anew."""
        if self.rows:
            draw_loss(self.rows, self.reference, self.folder / "loss.png")

    def close(self) -> None:
        """Draws a last time and closes the files."""
        try:
            self.draw()
        finally:
            try:
                self._file.close()
            finally:
                self._board.close()


def draw_loss(rows: Sequence[Row], reference: float | None, file: Path) -> None:
    """Training loss and held-out loss over tokens, in nats a token and in bits a byte."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tokens = [row.tokens / 1e6 for row in rows]
    losses = [row.cross_entropy for row in rows]
    evaluated = [row for row in rows if row.validation_loss is not None]
    at = [row.tokens / 1e6 for row in evaluated]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.plot(tokens, losses, color="#9db8d6", linewidth=0.8, label="training, each step")
    left.plot(tokens, _smooth(losses), color="#1f4e8c", linewidth=1.8, label="training, smoothed")
    left.plot(at, [row.validation_loss for row in evaluated], "o-", color="#c8501e", label="held out")
    left.set(xlabel="million tokens", ylabel="cross-entropy, nats a token", title="Loss")
    right.plot(at, [row.validation_bits_per_byte for row in evaluated], "o-", color="#c8501e", label="this model")
    if reference is not None:
        right.axhline(reference, color="#555555", linestyle="--", label=f"gzip -9: {reference:.3f}")
    right.set(xlabel="million tokens", ylabel="bits a byte", title="Held-out text")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, dpi=110, format="png")
    pyplot.close(figure)
    with write_atomically(file) as stream:
        stream.write(image.getvalue())


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """A full disk, for which the system names no file, gets the name of this one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(file)) from error


def _smooth(values: Sequence[float], keep: float = 0.95) -> list[float]:
    """Exponential mean that is not biased towards its start; what is not finite is passed over."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        if abs(value) < float("inf"):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight if weight else float("nan"))
    return out


def _text(value: float | int | None) -> str:
    return "" if value is None else repr(value) if isinstance(value, int) else f"{value:.9g}"

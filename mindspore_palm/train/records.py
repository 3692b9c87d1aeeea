"""What a run writes while it goes: metrics.csv, TensorBoard files and loss.png."""

from __future__ import annotations

import csv
import io
import os
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, asdict, dataclass, fields
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from mindspore_palm.data.atomic import write_atomically
from mindspore_palm.train.clock import Clock
from mindspore_palm.train.ours import delete_ours

EVENT_FILES = re.compile(r"events\.out\.tfevents\..*")
"""Names of the files that a run writes into tensorboard/: all others are somebody else's."""
EVENT_HEAD, EVENT_TAIL = 12, 4  # bytes around an event in TensorBoard's files: length and its checksum, checksum


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


class Records:
    """Appends rows to metrics.csv and TensorBoard, and draws them; a context that closes both.

    TensorBoard's events are written here and now: with the usual writer, a thread, a full disk would stop the run dead.

    Args:
        folder: of the run; what it holds of earlier steps was cut to where the run goes on (``cut_records``).
        reference: bits a byte of ``gzip -9`` on the held-out text, drawn beside the model's.
        rewinds: where the run went back, to be drawn: steps gone back to, and why.
    """

    def __init__(self, folder: Path, reference: float | None, rewinds: Sequence[tuple[int, str]] = ()) -> None:
        self.folder, self.reference, self.rewinds, self.clock = folder, reference, list(rewinds), Clock()
        self._table, board = folder / "metrics.csv", folder / "tensorboard"
        self.rows = read_rows(self._table)
        names = [field.name for field in fields(Row)]
        if self.rows:
            self._file = open(self._table, "a", newline="", encoding="utf-8")  # noqa: SIM115 - open for the run
            self._csv = csv.DictWriter(self._file, names)
        else:
            # "x": of two runs that start in one folder at once, the second ends here
            self._file = open(self._table, "x", newline="", encoding="utf-8")  # noqa: SIM115
            self._csv = csv.DictWriter(self._file, names)
            self._csv.writeheader()
        board.mkdir(exist_ok=True)
        started = f".from_{self.rows[-1].step}" if self.rows else ""
        self._board_file, self._board = board, EventsWriter(str(board / "events"), started)

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
            self._board.write_event(Event(wall_time=self.clock.now(), step=row.step, summary=Summary(value=scalars)))
            self._board.flush()

    def sync(self) -> None:
        """Returns when all rows so far are on the disk.

        Raises:
            OSError: they could not be written; says which file.
        """
        with _naming(self._table):
            os.fsync(self._file.fileno())

    def draw(self) -> None:
        """Writes loss.png anew."""
        if self.rows:
            draw_loss(self.rows, self.reference, self.folder / "loss.png", self.rewinds)

    def close(self) -> None:
        """Draws a last time and closes the files."""
        try:
            self.draw()
        finally:
            try:
                self._file.close()
            finally:
                self._board.close()


def draw_loss(
    rows: Sequence[Row], reference: float | None, file: Path, rewinds: Sequence[tuple[int, str]] = ()
) -> None:
    """Training loss and held-out loss over tokens, in nats a token and in bits a byte; where the run went back."""
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
    for step, why in rewinds:
        left.axvline(
            rows[min(step, len(rows)) - 1].tokens / 1e6 if step else 0.0, color="#b00020", linestyle=":", label=why
        )
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


def read_rows(table: Path) -> list[Row]:
    """The rows of metrics.csv, up to the first that is not whole; none where there is no such file."""
    if not table.exists():
        return []
    rows: list[Row] = []
    with open(table, newline="", encoding="utf-8-sig") as file, suppress(ValueError, csv.Error):
        for values in csv.DictReader(file):
            row = Row(**{field.name: _number(values.get(field.name), field) for field in fields(Row)})
            if row.step != (rows[-1].step + 1 if rows else row.step) or None in values.values():
                break
            rows.append(row)
    return rows


def cut_records(folder: Path, step: int) -> None:
    """Takes out of metrics.csv and TensorBoard all that comes behind a step: a run goes on from there.

    Raises:
        OSError: a file could not be written; says which.
    """
    table, board, new_board = folder / "metrics.csv", folder / "tensorboard", folder / "tensorboard.tmp"
    rows = [row for row in read_rows(table) if row.step <= step]
    if rows:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows({name: _text(value) for name, value in asdict(row).items()} for row in rows)
        with write_atomically(table) as file:
            file.write(text.getvalue().encode())
    else:
        table.unlink(missing_ok=True)
    if new_board.exists() and not board.exists():  # a cut was ended between its last two lines
        os.replace(new_board, board)
    delete_ours(new_board, EVENT_FILES)
    files = sorted(path for path in board.iterdir() if _is_ours(path)) if board.exists() else []
    if files:
        # a cut that was ended before the last line has left some events twice
        events = dict.fromkeys(event for file in files for event in _events_until(file, step))
        with write_atomically(files[0]) as file:
            file.writelines(events)
        for other in files[1:]:
            other.unlink()


def _is_ours(path: Path) -> bool:
    return EVENT_FILES.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()


def _events_until(file: Path, step: int) -> Iterator[bytes]:
    """The events of a file as they stand there, less those of later steps and what was not written to its end."""
    content, at = file.read_bytes(), 0
    while at + EVENT_HEAD <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        end = at + EVENT_HEAD + length + EVENT_TAIL
        if end > len(content):
            return
        try:
            event = Event.FromString(content[at + EVENT_HEAD : end - EVENT_TAIL])
        except DecodeError:
            return
        if event.step <= step:
            yield content[at:end]
        at = end


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


def _number(text: str | None, field: Field) -> float | int | None:
    """A field of metrics.csv; not a number if an older version did not write it."""
    if text in (None, ""):
        return float("nan") if field.default is MISSING else None
    return int(text) if field.type == "int" else float(text)


def _text(value: float | int | None) -> str:
    return "" if value is None else repr(value) if isinstance(value, int) else f"{value:.9g}"

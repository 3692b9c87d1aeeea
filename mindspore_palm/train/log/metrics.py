"""What a run writes while it goes: metrics.csv, TensorBoard files and loss.png."""

from __future__ import annotations

import csv
import io
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, asdict, fields
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from mindspore_palm.checkpoint.cleanup import delete_own_files
from mindspore_palm.console import say
from mindspore_palm.file_names import LOSS_CHART, METRICS, TEMPORARY, TENSORBOARD
from mindspore_palm.files import write_atomically
from mindspore_palm.train.log.clock import Clock
from mindspore_palm.train.log.growing_file import GrowingFile
from mindspore_palm.train.log.loss_chart import draw_loss
from mindspore_palm.train.log.row import Row

UNWRITTEN = "rows_not_in_metrics"  # in a checkpoint's state: the rows that the file did not take
EVENT_FILES = re.compile(r"events\.out\.tfevents\..*")
"""Names of the files that a run writes into tensorboard/: all others are somebody else's."""
EVENT_HEAD, EVENT_TAIL = 12, 4  # bytes around an event in TensorBoard's files: length and its checksum, checksum


LOSSES = 16  # rows that a checkpoint knows


class Records:
    """Appends rows to metrics.csv and TensorBoard, and draws them; a context that closes both.

    They only record the run: what cannot be written is said once, the run goes on, and the rows are written as soon as
    there is room again. TensorBoard's events are written here and now: with the usual writer, a thread, a full disk
    would stop the run dead.

    Args:
        folder: of the run.
        reference: bits a byte of ``gzip -9`` on the held-out text, drawn beside the model's.
        rewinds: where the run went back, to be drawn: steps gone back to, and why.
        until: the step that the run resumes from: later rows are cut; None keeps all.
        unwritten: rows that metrics.csv may lack, as ``unwritten`` gave them when that step was saved.
    """

    def __init__(
        self,
        folder: Path,
        reference: float | None,
        rewinds: Sequence[tuple[int, str]] = (),
        until: int | None = None,
        unwritten: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.folder, self.reference, self.rewinds, self.clock = folder, reference, list(rewinds), Clock()
        self._failing: set[str] = set()
        self._board: RecordWriter | None = None
        self._board_file = folder / TENSORBOARD
        self._boards = 0  # event files so far
        table = folder / METRICS
        cut = until is None or self._record(METRICS, lambda: cut_records(folder, until))
        self.rows = [row for row in read_rows(table) if until is None or row.step <= until]
        before = len(self.rows)
        for values in unwritten:
            if not self.rows or self.rows[-1].step < values["step"]:
                self.rows.append(Row(**values))
        self._drawn = before  # rows that TensorBoard has
        lines = [HEADER, *map(_line, self.rows)]
        self._table = GrowingFile(table, lines, written=1 + before if cut and before else 0)
        self._write()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, row: Row) -> None:
        """Writes a row; it is in the files when this returns, if they could be written."""
        self.rows.append(row)
        self._table.add(_line(row))
        self._write()

    def lacks_evaluation(self) -> bool:
        """Whether the last row has no held-out loss."""
        return bool(self.rows) and self.rows[-1].validation_loss is None

    def amend(self, validation_loss: float, validation_bits_per_byte: float) -> None:
        """Gives the last row the held-out loss that it lacks."""
        row = self.rows[-1]
        row.validation_loss, row.validation_bits_per_byte = validation_loss, validation_bits_per_byte
        self._table.replace_last(_line(row))
        self._write()
        values = {"validation_loss": validation_loss, "validation_bits_per_byte": validation_bits_per_byte}
        self._record(TENSORBOARD, lambda: self._add_event(row.step, values))

    def unwritten(self) -> list[dict[str, Any]]:
        """The last rows, as far as metrics.csv lacks them."""
        count = min(self._table.unwritten, len(self.rows))
        return [asdict(row) for row in self.rows[len(self.rows) - count :]]

    def sync(self) -> None:
        """Returns when all rows so far are on the disk, if they could be written."""
        self._record(METRICS, self._table.sync)

    def draw(self) -> None:
        """Writes loss.png anew."""
        if self.rows:
            self._record(
                LOSS_CHART, lambda: draw_loss(self.rows, self.reference, self.folder / LOSS_CHART, self.rewinds)
            )

    def close(self) -> None:
        """Draws a last time and closes the files."""
        self._write()
        self.draw()
        self._table.close()
        self._close_board()

    def _write(self) -> None:
        self._record(METRICS, self._table.write)
        self._record(TENSORBOARD, self._write_board)

    def _record(self, name: str, write: Callable[[], None]) -> bool:
        """Whether a file could be written; what was wrong is said once, until it can be written again."""
        try:
            write()
        except Exception as error:  # whatever it is: a record does not end the run
            if name not in self._failing:
                self._failing.add(name)
                reason = getattr(error, "strerror", None) or str(error) or repr(error)
                say(f"{self.folder / name} cannot be written now: {reason}; training continues, and tries again")
            return False
        self._failing.discard(name)
        return True

    def _write_board(self) -> None:
        while self._drawn < len(self.rows):
            row = self.rows[self._drawn]
            self._add_event(row.step, {name: value for name, value in asdict(row).items() if name != "step"})
            self._drawn += 1

    def _add_event(self, step: int, values: Mapping[str, float | None]) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items() if value is not None]
        try:
            if self._board is None or not self._board_file.exists():
                self._open_board(step)
            event = Event(wall_time=self.clock.now(), step=step, summary=Summary(value=scalars))
            self._board.write(event.SerializeToString())
            self._board.flush()
        except Exception:
            self._close_board()  # what follows an event that was cut off is not read: another file is begun
            raise

    def _open_board(self, step: int) -> None:
        self._close_board()
        (self.folder / TENSORBOARD).mkdir(parents=True, exist_ok=True)
        self._boards += 1
        started = f".from_{step - 1}" if step > 1 else ""
        number = f".{self._boards}" if self._boards > 1 else ""
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}{started}{number}"
        self._board_file = self.folder / TENSORBOARD / name
        self._board = RecordWriter(str(self._board_file))
        self._board.write(Event(wall_time=self.clock.now(), file_version="brain.Event:2").SerializeToString())

    def _close_board(self) -> None:
        board, self._board = self._board, None
        with suppress(Exception):
            if board is not None:
                board.close()


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


def last_losses(rows: Sequence[Row]) -> list[tuple[int, str]]:
    """By which a checkpoint knows the metrics.csv of its run: steps and losses, as the file has them."""
    return [(row.step, f"{row.loss:.9g}") for row in rows[-LOSSES:]]


def other_rows(table: Path, losses: Iterable[tuple[int, str]]) -> bool:
    """Whether metrics.csv has another loss at a step than the checkpoint knows."""
    rows = {row.step: f"{row.loss:.9g}" for row in read_rows(table)}
    return any(rows.get(step, loss) != loss for step, loss in losses)


def unread_lines(table: Path) -> int:
    """Lines of metrics.csv that are not read as rows."""
    if not table.exists():
        return 0
    lines = sum(bool(line.strip()) for line in table.read_bytes().splitlines()[1:])
    return lines - len(read_rows(table))


def cut_records(folder: Path, step: int) -> None:
    """Takes out of metrics.csv and TensorBoard all that comes behind a step: a run goes on from there.

    Raises:
        OSError: a file could not be written; says which.
    """
    table, board, new_board = folder / METRICS, folder / TENSORBOARD, folder / f"{TENSORBOARD}{TEMPORARY}"
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
    delete_own_files(new_board, EVENT_FILES)
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


def _number(text: str | None, field: Field) -> float | int | None:
    """A field of metrics.csv; not a number if an older version did not write it."""
    if text in (None, ""):
        return float("nan") if field.default is MISSING else None
    return int(text) if field.type == "int" else float(text)


def _text(value: float | int | None) -> str:
    return "" if value is None else repr(value) if isinstance(value, int) else f"{value:.9g}"


def _line(row: Row) -> str:
    """A row of metrics.csv, with the line end of csv."""
    return ",".join(map(_text, asdict(row).values())) + "\r\n"


HEADER = ",".join(field.name for field in fields(Row)) + "\r\n"

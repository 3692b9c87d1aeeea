"""Records of a run while it trains: metrics.csv, TensorBoard's event files, other trackers and loss.png."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mindspore_palm.console import say
from mindspore_palm.file_names import LOSS_CHART, METRICS, TENSORBOARD
from mindspore_palm.train.log.clock import SteadyClock
from mindspore_palm.train.log.growing_file import GrowingFile
from mindspore_palm.train.log.loss_chart import draw_loss
from mindspore_palm.train.log.metrics import HEADER, MetricsRow, line_of, read_rows, scalars_of, truncate_metrics
from mindspore_palm.train.log.tensorboard import EventWriter, truncate_events
from mindspore_palm.train.log.trackers import Tracker

UNWRITTEN = "rows_not_in_metrics"  # in a checkpoint's state: the rows that could not be written to the file


class Recorder:
    """Appends rows to metrics.csv, TensorBoard and other trackers, and draws them; a context that closes all of them.

    A failing record does not end the run: what cannot be written is logged once, training continues, and the rows are
    written as soon as there is room again.

    Args:
        folder: of the run.
        reference: bits/byte of ``gzip -9`` on the held-out text, drawn beside the model's.
        rewinds: where the run went back, to be drawn: steps gone back to, and why.
        until: the step that the run resumes from: later rows are removed; None keeps all.
        unwritten: rows that metrics.csv may lack, as ``unwritten`` returned them when that step was saved.
        trackers: that get the same rows as TensorBoard.
    """

    def __init__(
        self,
        folder: Path,
        reference: float | None,
        rewinds: Sequence[tuple[int, str]] = (),
        until: int | None = None,
        unwritten: Sequence[Mapping[str, Any]] = (),
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.folder, self.reference, self.rewinds, self.clock = folder, reference, list(rewinds), SteadyClock()
        self._failing: set[str] = set()
        self._trackers = trackers
        self._events = EventWriter(folder, self.clock)
        file = folder / METRICS
        truncated = until is None or self._try(METRICS, lambda: truncate_records(folder, until))
        self.rows = [row for row in read_rows(file) if until is None or row.step <= until]
        on_disk = len(self.rows)
        for values in unwritten:
            if not self.rows or self.rows[-1].step < values["step"]:
                self.rows.append(MetricsRow(**values))
        self._in_tensorboard = on_disk  # rows that TensorBoard has
        lines = [HEADER, *map(line_of, self.rows)]
        self._metrics = GrowingFile(file, lines, written=1 + on_disk if truncated and on_disk else 0)
        self._write()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, row: MetricsRow) -> None:
        """Writes a row; it is in the files when this returns, if they could be written."""
        self.rows.append(row)
        self._metrics.add(line_of(row))
        self._write()

    def lacks_evaluation(self) -> bool:
        """Whether the last row has no held-out loss."""
        return bool(self.rows) and self.rows[-1].validation_loss is None

    def amend(self, validation_loss: float, validation_bits_per_byte: float) -> None:
        """Adds the held-out loss to the last row, which lacks it."""
        row = self.rows[-1]
        row.validation_loss, row.validation_bits_per_byte = validation_loss, validation_bits_per_byte
        self._metrics.replace_last(line_of(row))
        self._write()
        values = {"validation_loss": validation_loss, "validation_bits_per_byte": validation_bits_per_byte}
        self._try(TENSORBOARD, lambda: self._events.add(row.step, values))
        for tracker in self._trackers:
            tracker.add(row.step, values)

    def unwritten(self) -> list[dict[str, Any]]:
        """The last rows, as far as metrics.csv lacks them."""
        count = min(self._metrics.unwritten, len(self.rows))
        return [asdict(row) for row in self.rows[len(self.rows) - count :]]

    def sync(self) -> None:
        """Returns when all rows so far are on the disk, if they could be written."""
        self._try(METRICS, self._metrics.sync)

    def draw(self) -> None:
        """Draws loss.png."""
        if self.rows:
            chart = self.folder / LOSS_CHART
            self._try(LOSS_CHART, lambda: draw_loss(self.rows, self.reference, chart, self.rewinds))

    def close(self) -> None:
        """Draws a last time and closes the files."""
        self._write()
        self.draw()
        self._metrics.close()
        self._events.close()
        for tracker in self._trackers:
            tracker.close()

    def _write(self) -> None:
        self._try(METRICS, self._metrics.write)
        self._try(TENSORBOARD, self._write_events)
        for tracker in self._trackers:
            tracker.follow(self.rows)

    def _try(self, name: str, write: Callable[[], None]) -> bool:
        """Whether a file could be written; a failure is logged once, until the file can be written again."""
        try:
            write()
        except Exception as error:  # any error: a record does not end the run
            if name not in self._failing:
                self._failing.add(name)
                reason = getattr(error, "strerror", None) or str(error) or repr(error)
                say(f"{self.folder / name} cannot be written now: {reason}; training continues, and tries again")
            return False
        self._failing.discard(name)
        return True

    def _write_events(self) -> None:
        while self._in_tensorboard < len(self.rows):
            row = self.rows[self._in_tensorboard]
            self._events.add(row.step, scalars_of(row))
            self._in_tensorboard += 1


def truncate_records(folder: Path, step: int) -> None:
    """Removes from metrics.csv and TensorBoard all that comes after a step, from which the run resumes.

    Raises:
        OSError: a file could not be written; names it.
    """
    truncate_metrics(folder / METRICS, step)
    truncate_events(folder, step)

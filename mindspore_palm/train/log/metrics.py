"""metrics.csv: one row per optimizer step."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mindspore_palm.files import write_atomically

REMEMBERED = 16  # rows whose losses a checkpoint stores


@dataclass
class MetricsRow:
    """One row of metrics.csv: one optimizer step."""

    step: int
    """Steps taken when the row was written; counts from 1."""
    loss: float
    """Training loss, cross-entropy + z-loss, in nats/token."""
    cross_entropy: float
    """Nats/token on this step's batch, before its update."""
    learning_rate: float
    gradient_norm: float
    """Global norm before clipping."""
    skipped: int
    """1 if the loss or a gradient was not finite and nothing was changed."""
    tokens: int
    """Trained on since the start."""
    seconds: float
    """Duration of this step, including reading the batch."""
    tokens_per_second: float
    mfu: float
    """Model FLOPs utilization, as a fraction of the machine's peak."""
    hfu: float
    """Hardware FLOPs utilization: MFU plus what the backward pass recomputes."""
    validation_loss: float | None = None
    """Held-out cross-entropy after this step, nats/token; empty if it was not measured."""
    validation_bits_per_byte: float | None = None
    loss_scale: float | None = None
    """Factor of the loss in the backward pass of this step; empty unless the compute dtype is float16."""


HEADER = ",".join(field.name for field in fields(MetricsRow)) + "\r\n"


def read_rows(file: Path) -> list[MetricsRow]:
    """Rows of metrics.csv, up to the first incomplete one; none if there is no such file."""
    if not file.exists():
        return []
    rows: list[MetricsRow] = []
    with open(file, newline="", encoding="utf-8-sig") as lines, suppress(ValueError, csv.Error):
        for values in csv.DictReader(lines):
            parsed: dict[str, Any] = {f.name: _parse(values.get(f.name), f) for f in fields(MetricsRow)}
            row = MetricsRow(**parsed)
            if row.step != (rows[-1].step + 1 if rows else row.step) or None in values.values():
                break
            rows.append(row)
    return rows


def last_step(file: Path) -> int:
    """The last step in metrics.csv; 0 if it has none."""
    rows = read_rows(file)
    return rows[-1].step if rows else 0


def scalars_of(row: MetricsRow) -> dict[str, float]:
    """Values of a step for trackers: each number of its row by name, as far as it was measured."""
    return {name: value for name, value in asdict(row).items() if name != "step" and value is not None}


def line_of(row: MetricsRow) -> str:
    """A row as a line of metrics.csv, with the line end of csv."""
    return ",".join(map(_format, asdict(row).values())) + "\r\n"


def truncate_metrics(file: Path, step: int) -> None:
    """Removes the rows after a step.

    Raises:
        OSError: the file could not be written.
    """
    rows = [row for row in read_rows(file) if row.step <= step]
    if rows:
        with write_atomically(file) as content:
            content.write("".join([HEADER, *map(line_of, rows)]).encode())
    else:
        file.unlink(missing_ok=True)


def last_losses(rows: Sequence[MetricsRow]) -> list[tuple[int, str]]:
    """Last steps and their losses as metrics.csv has them; identifies the file of a run in its checkpoints."""
    return [(row.step, _format(row.loss)) for row in rows[-REMEMBERED:]]


def has_other_losses(file: Path, losses: Iterable[tuple[int, str]]) -> bool:
    """Whether metrics.csv has another loss at some step than the checkpoint.

    Args:
        file: metrics.csv.
        losses: of the checkpoint, from ``last_losses``.
    """
    rows = {row.step: _format(row.loss) for row in read_rows(file)}
    return any(rows.get(step, loss) != loss for step, loss in losses)


def count_unreadable_lines(file: Path) -> int:
    """Number of lines of metrics.csv that ``read_rows`` does not return."""
    if not file.exists():
        return 0
    lines = sum(bool(line.strip()) for line in file.read_bytes().splitlines()[1:])
    return lines - len(read_rows(file))


def _parse(text: str | None, field: Field) -> float | int | None:
    """Value of a field of metrics.csv; NaN if an older version did not write it."""
    if text in (None, ""):
        return float("nan") if field.default is MISSING else None
    return int(text) if field.type == "int" else float(text)


def _format(value: float | int | None) -> str:
    return "" if value is None else repr(value) if isinstance(value, int) else f"{value:.9g}"

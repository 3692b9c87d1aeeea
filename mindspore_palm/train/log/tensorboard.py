"""TensorBoard's event files: one event per step, with every number of its row."""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from google.protobuf.message import DecodeError

from mindspore_palm.checkpoint.cleanup import delete_own_files
from mindspore_palm.file_names import TEMPORARY, TENSORBOARD
from mindspore_palm.files import write_atomically
from mindspore_palm.modules import without
from mindspore_palm.train.log.clock import SteadyClock

with without("torch"):  # tensorboardX would import it, if it is installed: 280 MB of memory
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import RecordWriter

EVENT_FILES = re.compile(r"events\.out\.tfevents\..*")
"""Names of the files that a run writes into tensorboard/; all others belong to somebody else."""
HEAD, TAIL = 12, 4  # bytes around an event in a file: its length and a checksum before it, a checksum after it


class EventWriter:
    """Writes events into the tensorboard/ folder of a run, in this thread.

    tensorboardX's own writer works in a thread, and a full disk would stop the run dead.

    Args:
        folder: of the run.
        clock: gives the time of each event.
    """

    def __init__(self, folder: Path, clock: SteadyClock) -> None:
        self._folder, self._clock = folder / TENSORBOARD, clock
        self._writer: RecordWriter | None = None
        self._file = self._folder
        self._opened = 0  # event files so far

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """Writes one event; it is in the file when this returns.

        Raises:
            Exception: it could not be written. The next call opens another file.
        """
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items() if value is not None]
        try:
            if self._writer is None or not self._file.exists():
                self._writer = self._open(step)
            event = Event(wall_time=self._clock.now(), step=step, summary=Summary(value=scalars))
            self._writer.write(event.SerializeToString())
            self._writer.flush()
        except Exception:
            self.close()  # events after a truncated one are not read, so the next one needs another file
            raise

    def close(self) -> None:
        """Closes the file."""
        writer, self._writer = self._writer, None
        with suppress(Exception):
            if writer is not None:
                writer.close()

    def _open(self, step: int) -> RecordWriter:
        self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._opened += 1
        started = f".from_{step - 1}" if step > 1 else ""
        number = f".{self._opened}" if self._opened > 1 else ""
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}{started}{number}"
        self._file = self._folder / name
        writer = RecordWriter(str(self._file))
        writer.write(Event(wall_time=self._clock.now(), file_version="brain.Event:2").SerializeToString())
        return writer


def truncate_events(folder: Path, step: int) -> None:
    """Removes the events after a step.

    Args:
        folder: of the run.
        step: the last step to keep.

    Raises:
        OSError: a file could not be written.
    """
    events, temporary = folder / TENSORBOARD, folder / f"{TENSORBOARD}{TEMPORARY}"
    if temporary.exists() and not events.exists():  # an earlier version was killed between two renames
        os.replace(temporary, events)
    delete_own_files(temporary, EVENT_FILES)
    files = sorted(path for path in events.iterdir() if _is_ours(path)) if events.exists() else []
    if files:
        # if this was killed before the last line, some events are in two files
        kept = dict.fromkeys(event for file in files for event in _events_until(file, step))
        with write_atomically(files[0]) as file:
            file.writelines(kept)
        for other in files[1:]:
            other.unlink()


def _is_ours(path: Path) -> bool:
    return EVENT_FILES.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()


def _events_until(file: Path, step: int) -> Iterator[bytes]:
    """Encoded events of a file up to a step, without a truncated one at its end."""
    content, at = file.read_bytes(), 0
    while at + HEAD <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        end = at + HEAD + length + TAIL
        if end > len(content):
            return
        try:
            event = Event.FromString(content[at + HEAD : end - TAIL])
        except DecodeError:
            return
        if event.step <= step:
            yield content[at:end]
        at = end

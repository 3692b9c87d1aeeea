"""TensorBoard's event files, read: records of length, checksum, bytes, checksum."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def events(folder: Path) -> Iterator[Event]:
    """All whole events of a run's folder, file by file."""
    for file in sorted((folder / "tensorboard").iterdir()):
        content, at = file.read_bytes(), 0
        while at + 12 <= len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            if at + 12 + length + 4 > len(content):
                break
            yield Event.FromString(content[at + 12 : at + 12 + length])
            at += 12 + length + 4

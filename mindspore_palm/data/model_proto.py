"""The properties of a SentencePiece model that decide whether it keeps every text, read off its file.

The file is a protocol buffer (``sentencepiece_model.proto``). Its generated Python module demands a protobuf version of
its own, so the few fields that matter are read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

TRAINER, NORMALIZER = 2, 3  # fields of ModelProto
BYTE_FALLBACK = 35  # of TrainerSpec
NAME, CHARSMAP, DUMMY_PREFIX, EXTRA_WHITESPACES = 1, 2, 3, 4  # of NormalizerSpec
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # how a field is written


@dataclass(frozen=True)
class Properties:
    """What a SentencePiece model does to a text before it looks for pieces, and with characters that it lacks."""

    normalizer: str
    """Name of the normalizer that changes the text; empty if none does."""
    adds_dummy_prefix: bool
    """A space is put before the text."""
    removes_extra_whitespaces: bool
    """Spaces at both ends, and all but one of several, are dropped."""
    byte_fallback: bool
    """Characters outside the vocabulary become their UTF-8 bytes."""

    def losses(self) -> list[str]:
        """Reasons why the model does not keep every text, in words; empty if it does, given all 256 byte pieces."""
        reasons = {
            f"its normalizer {self.normalizer} changes characters": bool(self.normalizer),
            "it puts a space before the text (add_dummy_prefix)": self.adds_dummy_prefix,
            "it drops spaces (remove_extra_whitespaces)": self.removes_extra_whitespaces,
            "it has no byte fallback": not self.byte_fallback,
        }
        return [reason for reason, holds in reasons.items() if holds]


def read_properties(model: bytes) -> Properties:
    """Reads the properties off a serialized ``ModelProto``; fields that it lacks have the defaults of the format.

    Raises:
        ValueError: this is no protocol buffer.
    """
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(model):  # a message that comes twice is merged, as protocol buffers are
        if field == TRAINER and isinstance(value, bytes):
            trainer |= dict(_fields(value))
        elif field == NORMALIZER and isinstance(value, bytes):
            normalizer |= dict(_fields(value))
    name = normalizer.get(NAME, b"")
    changes = bool(normalizer.get(CHARSMAP))
    return Properties(
        normalizer=(name.decode(errors="replace") if isinstance(name, bytes) and name else "(unnamed)")
        if changes
        else "",
        adds_dummy_prefix=bool(normalizer.get(DUMMY_PREFIX, 1)),
        removes_extra_whitespaces=bool(normalizer.get(EXTRA_WHITESPACES, 1)),
        byte_fallback=bool(trainer.get(BYTE_FALLBACK, 0)),
    )


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field, in order: an integer, or the bytes of a string or of a message within."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == VARINT:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        if kind == LENGTH:
            size, place = _varint(message, place)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"there is no kind {kind} of fields")
        if place + size > len(message):
            raise ValueError("a field runs over the end")
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError("an integer does not end")
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place

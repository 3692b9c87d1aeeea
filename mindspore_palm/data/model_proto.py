"""Properties of a SentencePiece model that determine whether it is lossless, read from its file.

The file is a protocol buffer (``sentencepiece_model.proto``). The generated Python module for it requires a specific
protobuf version, so the few fields that matter are parsed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

TRAINER, NORMALIZER = 2, 3  # fields of ModelProto
MODEL_TYPE, BYTE_FALLBACK = 3, 35  # of TrainerSpec
UNIGRAM, BPE = 1, 2  # model types; the first is the default
NAME, CHARSMAP, DUMMY_PREFIX, EXTRA_WHITESPACES = 1, 2, 3, 4  # of NormalizerSpec
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Properties:
    """Changes that a SentencePiece model makes to a text before it looks for pieces, and its byte fallback."""

    normalizer: str
    """Name of the normalizer that changes the text; empty if none does."""
    adds_dummy_prefix: bool
    """Whether a space is added before the text."""
    removes_extra_whitespaces: bool
    """Whether spaces at both ends, and all but one of several in a row, are dropped."""
    byte_fallback: bool
    """Whether characters outside the vocabulary become their UTF-8 bytes."""
    model_type: int
    """How pieces are found: ``BPE``, or another of the format's numbers."""

    def losses(self) -> list[str]:
        """Reasons why the model is not lossless, as phrases; empty if it is, given all 256 byte pieces."""
        reasons = {
            f"its normalizer {self.normalizer} changes characters": bool(self.normalizer),
            "it puts a space before the text (add_dummy_prefix)": self.adds_dummy_prefix,
            "it drops spaces (remove_extra_whitespaces)": self.removes_extra_whitespaces,
            "it has no byte fallback": not self.byte_fallback,
        }
        return [reason for reason, holds in reasons.items() if holds]


def read_properties(model: bytes) -> Properties:
    """Reads the properties from a serialized ``ModelProto``; missing fields have the defaults of the format.

    Raises:
        ValueError: this is not a protocol buffer.
    """
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(model):  # a message that appears twice is merged, as the format requires
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
        model_type=int(trainer.get(MODEL_TYPE, UNIGRAM)),
    )


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field, in order: an integer, or the bytes of a string or of a nested message."""
    offset = 0
    while offset < len(message):
        key, offset = _varint(message, offset)
        wire_type = key & 7
        if wire_type == VARINT:
            value, offset = _varint(message, offset)
            yield key >> 3, value
            continue
        if wire_type == LENGTH:
            size, offset = _varint(message, offset)
        elif wire_type in (FIXED64, FIXED32):
            size = 8 if wire_type == FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type}")
        if offset + size > len(message):
            raise ValueError("a field is truncated")
        yield key >> 3, message[offset : offset + size]
        offset += size


def _varint(message: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if offset >= len(message) or shift > 63:
            raise ValueError("an integer is truncated or too long")
        byte = message[offset]
        value |= (byte & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 0x80:
            return value, offset

"""Documents of a corpus: from .txt, .jsonl and .parquet files, or the source of Python's own standard library."""

from __future__ import annotations

import datetime
import json
import numbers
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from mindspore_palm.data.files import JSON_LINES, PARQUET, PYTHON_STDLIB, CorpusFile, find_files, open_file, printable
from mindspore_palm.errors import UserError

PART_BYTES = 4 * 2**20  # a longer .txt is read in parts of at most this, so memory does not depend on its size
LINE_BYTES = 2**30  # of .jsonl: a line is read at once
BOM = b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Document:
    """A document, or a part of one: a large .txt is read in parts, in order, each ending after a line if it has one."""

    name: str
    """Name for messages: the file, and the line or row."""
    text: str
    """Never empty."""
    offset: int
    """Bytes of the document before this part."""
    size: int
    """Bytes of the full document, in UTF-8."""
    part_size: int
    """Bytes of ``text``, in UTF-8."""

    @property
    def last(self) -> bool:
        """Whether the document ends here."""
        return self.offset + self.part_size == self.size


def corpus_files(path: str) -> list[CorpusFile]:
    """Files of a corpus that are read, sorted by name; see ``files.find_files``."""
    return list(find_files(path).read)


def documents(
    path: str, text_field: str, path_setting: str = "data.path", field_setting: str = "data.text_field"
) -> Iterator[Document]:
    """Documents of a corpus in a fixed order, one at a time.

    A text file is one document; so is each line of .jsonl and each row of .parquet. Text is read unchanged, line ends
    included. Only a byte order mark at the start of a file is dropped, as it is not text. Empty documents and empty
    lines of .jsonl are skipped.

    Args:
        path: as in ``data.path``.
        text_field: the field of .jsonl or the column of .parquet.
        path_setting: the setting or option that the user gave the path with, for messages.
        field_setting: the setting or option that the user gave the field with, for messages.

    Raises:
        UserError: text cannot be read; names the file and the byte, line or row.
    """
    for file in find_files(path, path_setting).read:
        try:
            if path == PYTHON_STDLIB:
                yield from _stdlib_document(file)
            elif file.format == JSON_LINES:
                for record, where in json_lines(file.path, file.compression):
                    yield from _one_document(where, read_text_field(record, text_field, where, field_setting))
            elif file.format == PARQUET:
                yield from _parquet(file, text_field, field_setting)
            else:
                yield from _text(file)
        except OSError as error:
            raise UserError(f"{printable(file.path)}: {error.strerror or error}") from None


def json_lines(path: Path, compression: str = "") -> Iterator[tuple[Any, str]]:
    """Record of each line of a .jsonl, and its location for messages. Empty lines are skipped.

    Raises:
        UserError: a line is not JSON in UTF-8, or this is not a regular file; names file, line, and byte or column.
        OSError: the file cannot be read.
    """
    with open_file(path, compression) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(LINE_BYTES), b""), 1):
            where = f"{printable(path)}, line {number}"
            if len(line) == LINE_BYTES and not line.endswith(b"\n"):
                raise UserError(f"{where}: the line has {LINE_BYTES >> 20} MB or more; give each document its own line")
            if number == 1:
                line = line.removeprefix(BOM)
            try:
                text = line.decode().strip()
                record = json.loads(text, object_pairs_hook=_record) if text else None
            except UnicodeDecodeError as error:
                hint = _encoding_hint(line) if number == 1 else ""
                raise UserError(f"{where}: not UTF-8 text at byte {error.start} of the line{hint}") from None
            except json.JSONDecodeError as error:
                raise UserError(f"{where}, column {error.colno}: this is not JSON ({error.msg})") from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, deeply nested lists
                raise UserError(f"{where}: this is not JSON ({error})") from None
            if text:
                yield record, where


class DuplicateFields(dict[str, Any]):
    """A JSON object with duplicate fields: JSON readers keep the last value, and the first one is lost."""

    names: frozenset[str]
    """Fields that appear more than once."""


def _record(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(fields)
    if len(record) == len(fields):
        return record
    counts = Counter(name for name, _ in fields)
    duplicate = DuplicateFields(record)
    duplicate.names = frozenset(name for name, count in counts.items() if count > 1)
    return duplicate


def check_unique_field(record: dict[str, Any], field: str, where: str) -> None:
    """Checks that a record of ``json_lines`` has a field only once.

    Raises:
        UserError: the field appears twice, and one of its values would be lost.
    """
    if isinstance(record, DuplicateFields) and field in record.names:
        raise UserError(f"{where}: the field {field!r} appears twice; keep one of them")


def check_encodable(text: str, name: str) -> None:
    """Checks that a JSON string is Unicode text: JSON can escape a lone surrogate, which UTF-8 cannot encode.

    Raises:
        UserError: the string holds a lone surrogate; ``name`` is the string's name in the message.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} holds a lone surrogate at character {error.start}, which is half a character; write the full "
            "character, or remove it"
        ) from None


def list_names(names: Iterable[str]) -> str:
    """The first ten names of fields or columns, for messages."""
    return ", ".join(printable(name) for name in islice(names, 10)) or "none"


def _one_document(name: str, text: str) -> Iterator[Document]:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise UserError(f"{name}: the text holds a lone surrogate at character {error.start}") from None
    if text:
        yield Document(name, text, 0, size, size)


def _stdlib_document(file: CorpusFile) -> Iterator[Document]:
    try:
        yield from _one_document(file.name, file.path.read_bytes().removeprefix(BOM).decode())
    except UnicodeDecodeError:
        return  # a few files declare another encoding, which the user cannot change


def _text(file: CorpusFile) -> Iterator[Document]:
    name, start, size = printable(file.path), *_extent(file)
    with open_file(file.path, file.compression) as stream:
        _read(stream, start)
        offset, rest = 0, b""
        while offset < size:
            block = rest + _read(stream, min(PART_BYTES - len(rest), size - offset - len(rest)))
            at_end = offset + len(block) >= size
            part = block if at_end else block[: _part_end(block)]
            rest = block[len(part) :]
            if len(block) < min(PART_BYTES, size - offset):
                raise UserError(f"{name}: the file changed while it was read; start again")
            try:
                text = part.decode()
            except UnicodeDecodeError as error:
                byte, hint = start + offset + error.start, "" if offset else _encoding_hint(block)
                raise UserError(f"{name}: not UTF-8 text at byte {byte}{hint}; save the file as UTF-8") from None
            yield Document(name, text, offset, size, len(part))
            offset += len(part)


def _extent(file: CorpusFile) -> tuple[int, int]:
    """Bytes of a text file's byte order mark, and bytes after it; a compressed file is read in full to count them."""
    with open_file(file.path, file.compression) as stream:
        first = _read(stream, len(BOM))
        start = len(BOM) if first == BOM else 0
        if not file.compression:
            return start, stream.seek(0, 2) - start
        return start, len(first) + sum(iter(lambda: len(stream.read(PART_BYTES)), 0)) - start


def _read(stream: IO[bytes], size: int) -> bytes:
    """``size`` bytes, or all that are left; one ``read`` of a compressed stream may return fewer."""
    blocks = []
    while size > 0 and (block := stream.read(size)):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


def _encoding_hint(start: bytes) -> str:
    """Likely encoding of a text that is not UTF-8, for messages; empty if unknown."""
    return " (it looks like UTF-16)" if start.startswith(UTF16) else ""


def _part_end(block: bytes) -> int:
    """End of a part within a block: after its last line, or else before a character that the block's end splits."""
    line_end = block.rfind(b"\n") + 1
    if line_end:
        return line_end
    end = len(block)
    while end > max(1, len(block) - 4) and 0x80 <= block[end - 1] < 0xC0:  # bytes inside a character
        end -= 1
    return end - 1 if end > 1 and block[end - 1] >= 0xC0 else len(block)


def read_text_field(record: Any, field: str, where: str, setting: str) -> str:
    """Text in a field of a .jsonl record; ``setting`` is the setting or option that names the field.

    Raises:
        UserError: the record has no such field, or its value is not a string.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with the field {field!r}, found {_type_name(record)}")
    if field not in record:
        fields = list_names(record)
        raise UserError(f"{where}: there is no field {field!r}; set {setting} to one of the fields here ({fields})")
    check_unique_field(record, field, where)
    if not isinstance(record[field], str):
        raise UserError(f"{where}: the field {field!r} must be a string, not {_type_name(record[field])}")
    return record[field]


def _type_name(value: Any) -> str:
    type_names: tuple[tuple[Any, str], ...] = (
        (bool, "a boolean"),
        (type(None), "null"),
        (str, "a string"),
        (dict, "an object"),
        ((list, tuple), "a list"),
        (bytes, "bytes"),
        ((datetime.date, datetime.time), "a date or time"),
        (datetime.timedelta, "a duration"),
        (numbers.Number, "a number"),
    )
    return next(
        (name for types, name in type_names if isinstance(value, types)), f"a value of type {type(value).__name__}"
    )


def _parquet(file: CorpusFile, column: str, setting: str) -> Iterator[Document]:
    name = printable(file.path)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{name}: reading .parquet needs pyarrow; pip install pyarrow") from None
    with open_file(file.path) as stream:
        try:
            with pyarrow.parquet.ParquetFile(stream) as table:
                columns = table.schema_arrow.names
                if column not in columns:
                    raise UserError(
                        f"{name}: there is no column {column!r}; set {setting} to one of the columns here "
                        f"({list_names(columns)})"
                    )
                if columns.count(column) > 1:
                    raise UserError(f"{name}: the column {column!r} appears twice; keep one of them")
                row = 0
                for batch in table.iter_batches(batch_size=256, columns=[column]):
                    for value in batch.column(batch.schema.names.index(column)):
                        row += 1
                        yield from _parquet_row(value, column, f"{name}, row {row}")
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # an error of the disk, not of the content
                raise
            reason = printable(" ".join(str(error).split()))  # some messages have several lines
            raise UserError(f"{name}: this is not a readable .parquet file ({reason})") from None


def _parquet_row(value: Any, column: str, where: str) -> Iterator[Document]:
    try:
        text = value.as_py()
        if isinstance(text, bytes):  # text in a column of type binary
            text = text.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text at byte {error.start} of the column {column!r}") from None
    except (ValueError, OverflowError):  # a time that Python's own types cannot represent
        text = value
    if not isinstance(text, str):
        type_name = _type_name(text) if text is not value else f"a value of type {value.type}"
        raise UserError(f"{where}: the column {column!r} must hold strings, not {type_name}")
    yield from _one_document(where, text)

"""Documents from where text lies: .txt, .jsonl and .parquet files, or the source of Python's own standard library."""

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

PART_BYTES = 4 * 2**20  # a longer .txt comes in parts of at most this, so that memory does not depend on its size
BOM = b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Document:
    """A document, or a part of one: a large .txt comes in parts, in order, each cut after a line where there is one."""

    name: str
    """For messages: the file, and the line or row."""
    text: str
    """Never empty."""
    offset: int
    """Bytes of the document before this part."""
    size: int
    """Bytes of the whole document, in UTF-8."""
    part_size: int
    """Bytes of ``text``, in UTF-8."""

    @property
    def last(self) -> bool:
        """Whether the document ends here."""
        return self.offset + self.part_size == self.size


def corpus_files(path: str) -> list[CorpusFile]:
    """The files that are read of a corpus, sorted by name; see ``files.find_files``."""
    return list(find_files(path).read)


def documents(
    path: str, text_field: str, path_setting: str = "data.path", field_setting: str = "data.text_field"
) -> Iterator[Document]:
    """The documents of a corpus in a fixed order, one at a time.

    A text is one document, a line of .jsonl and a row of .parquet are one each. Text is taken as it is, line ends
    included; only a byte order mark at the start of a file is dropped, being a mark of the encoding and no text. Empty
    documents and empty lines of .jsonl are passed over.

    Args:
        path: as in ``data.path``.
        text_field: the field of .jsonl or the column of .parquet.
        path_setting: what the user named the path with, for messages.
        field_setting: what the user named the field with, for messages.

    Raises:
        UserError: one sentence that names the file and the byte, line or row.
    """
    for file in find_files(path, path_setting).read:
        try:
            if path == PYTHON_STDLIB:
                yield from _stdlib_document(file)
            elif file.format == JSON_LINES:
                for record, where in json_lines(file.path, file.compression):
                    yield from _whole(where, read_text_field(record, text_field, where, field_setting))
            elif file.format == PARQUET:
                yield from _parquet(file, text_field, field_setting)
            else:
                yield from _text(file)
        except OSError as error:
            raise UserError(f"{printable(file.path)}: {error.strerror or error}") from None


def json_lines(path: Path, compression: str = "") -> Iterator[tuple[Any, str]]:
    """What each line of a .jsonl holds, and where it stands, for messages. Empty lines are passed over.

    Raises:
        UserError: names file, line, and byte or column; or it is no regular file.
        OSError: the file cannot be read.
    """
    with open_file(path, compression) as stream:
        for number, line in enumerate(stream, 1):
            where = f"{printable(path)}, line {number}"
            if number == 1:
                line = line.removeprefix(BOM)
            try:
                text = line.decode().strip()
                record = json.loads(text, object_pairs_hook=_record) if text else None
            except UnicodeDecodeError as error:
                hint = _encoding(line) if number == 1 else ""
                raise UserError(f"{where}: not UTF-8 text at byte {error.start} of the line{hint}") from None
            except json.JSONDecodeError as error:
                raise UserError(f"{where}, column {error.colno}: this is not JSON ({error.msg})") from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
                raise UserError(f"{where}: this is not JSON ({error})") from None
            if text:
                yield record, where


class DuplicateFields(dict[str, Any]):
    """An object of JSON in which fields come twice: JSON's readers keep the last value, and the first is lost."""

    names: frozenset[str]
    """These fields."""


def _record(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(fields)
    if len(record) == len(fields):
        return record
    counts = Counter(name for name, _ in fields)
    twice = DuplicateFields(record)
    twice.names = frozenset(name for name, count in counts.items() if count > 1)
    return twice


def check_unique_field(record: dict[str, Any], field: str, where: str) -> None:
    """Sees that a field of what ``json_lines`` gives comes once.

    Raises:
        UserError: it comes twice, and one of its values would be lost.
    """
    if isinstance(record, DuplicateFields) and field in record.names:
        raise UserError(f"{where}: the field {field!r} comes twice; keep one of them")


def check_encodable(text: str, what: str) -> None:
    """Sees that a string of JSON is text, which may hold any half of a character by its number.

    Raises:
        UserError: it is none; ``what`` names it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} holds a lone surrogate at character {error.start}, which is half a character; write the character "
            "whole, or take it out"
        ) from None


def list_names(names: Iterable[str]) -> str:
    """The first of some names of fields or columns, for messages."""
    return ", ".join(printable(name) for name in islice(names, 10)) or "none"


def _whole(name: str, text: str) -> Iterator[Document]:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise UserError(f"{name}: the text holds a lone surrogate at character {error.start}") from None
    if text:
        yield Document(name, text, 0, size, size)


def _stdlib_document(file: CorpusFile) -> Iterator[Document]:
    try:
        yield from _whole(file.name, file.path.read_bytes().removeprefix(BOM).decode())
    except UnicodeDecodeError:
        return  # a few files declare another encoding: no fault of the user's


def _text(file: CorpusFile) -> Iterator[Document]:
    place, start, size = printable(file.path), *_extent(file)
    with open_file(file.path, file.compression) as stream:
        _read(stream, start)
        offset, rest = 0, b""
        while offset < size:
            block = rest + _read(stream, min(PART_BYTES - len(rest), size - offset - len(rest)))
            at_end = offset + len(block) >= size
            part = block if at_end else block[: _cut(block)]
            rest = block[len(part) :]
            if len(block) < min(PART_BYTES, size - offset):
                raise UserError(f"{place}: the file changed while it was read; start again")
            try:
                text = part.decode()
            except UnicodeDecodeError as error:
                where, hint = start + offset + error.start, "" if offset else _encoding(block)
                raise UserError(f"{place}: not UTF-8 text at byte {where}{hint}; save the file as UTF-8") from None
            yield Document(place, text, offset, size, len(part))
            offset += len(part)


def _extent(file: CorpusFile) -> tuple[int, int]:
    """Bytes of a text's byte order mark, and bytes behind it; a packed one is read through for this."""
    with open_file(file.path, file.compression) as stream:
        first = _read(stream, len(BOM))
        start = len(BOM) if first == BOM else 0
        if not file.compression:
            return start, stream.seek(0, 2) - start
        return start, len(first) + sum(iter(lambda: len(stream.read(PART_BYTES)), 0)) - start


def _read(stream: IO[bytes], size: int) -> bytes:
    """So many bytes, or all there are; one ``read`` of a packed stream may give fewer."""
    blocks = []
    while size > 0 and (block := stream.read(size)):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


def _encoding(start: bytes) -> str:
    """What else the encoding of a text may be, for messages."""
    return " (it looks like UTF-16)" if start.startswith(UTF16) else ""


def _cut(block: bytes) -> int:
    """Where to end a part: after its last line, or else before the character that its end may cut."""
    line_end = block.rfind(b"\n") + 1
    if line_end:
        return line_end
    cut = len(block)
    while cut > max(1, len(block) - 4) and 0x80 <= block[cut - 1] < 0xC0:  # bytes inside a character
        cut -= 1
    return cut - 1 if cut > 1 and block[cut - 1] >= 0xC0 else len(block)


def read_text_field(record: Any, field: str, where: str, setting: str) -> str:
    """The text in a field of what a line of a .jsonl holds; ``setting`` is what names the field.

    Raises:
        UserError: there is none, or no text in it.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with the field {field!r}, found {_kind(record)}")
    if field not in record:
        there = list_names(record)
        raise UserError(f"{where}: there is no field {field!r}; set {setting} to one of the fields here ({there})")
    check_unique_field(record, field, where)
    if not isinstance(record[field], str):
        raise UserError(f"{where}: the field {field!r} must be a string, and is {_kind(record[field])}")
    return record[field]


def _kind(value: Any) -> str:
    kinds: tuple[tuple[Any, str], ...] = (
        (bool, "a truth value"),
        (type(None), "null"),
        (str, "a string"),
        (dict, "an object"),
        ((list, tuple), "a list"),
        (bytes, "bytes"),
        ((datetime.date, datetime.time), "a date or time"),
        (datetime.timedelta, "a duration"),
        (numbers.Number, "a number"),
    )
    return next((name for types, name in kinds if isinstance(value, types)), f"of type {type(value).__name__}")


def _parquet(file: CorpusFile, column: str, setting: str) -> Iterator[Document]:
    place = printable(file.path)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{place}: reading .parquet needs pyarrow; pip install pyarrow") from None
    with open_file(file.path) as stream:
        try:
            with pyarrow.parquet.ParquetFile(stream) as table:
                names = table.schema_arrow.names
                if column not in names:
                    there = list_names(names)
                    raise UserError(
                        f"{place}: there is no column {column!r}; set {setting} to one of the columns here ({there})"
                    )
                if names.count(column) > 1:
                    raise UserError(f"{place}: the column {column!r} comes twice; keep one of them")
                row = 0
                for batch in table.iter_batches(batch_size=256, columns=[column]):
                    for value in batch.column(batch.schema.names.index(column)):
                        row += 1
                        yield from _parquet_row(value, column, f"{place}, row {row}")
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the content's
                raise
            reason = printable(" ".join(str(error).split()))  # several lines, some of them
            raise UserError(f"{place}: this is not a readable .parquet file ({reason})") from None


def _parquet_row(value: Any, column: str, where: str) -> Iterator[Document]:
    try:
        text = value.as_py()
        if isinstance(text, bytes):  # text that was written without saying that it is
            text = text.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text at byte {error.start} of the column {column!r}") from None
    except (ValueError, OverflowError):  # a time that Python's own types cannot hold
        text = value
    if not isinstance(text, str):
        kind = _kind(text) if text is not value else f"of type {value.type}"
        raise UserError(f"{where}: the column {column!r} must hold strings, and here is {kind}")
    yield from _whole(where, text)

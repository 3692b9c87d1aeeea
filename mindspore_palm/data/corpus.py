"""Documents from where text lies: .txt, .jsonl and .parquet files, or the source of Python's own standard library."""

from __future__ import annotations

import glob
import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore_palm.errors import UserError

PYTHON_STDLIB = "python-stdlib"
EXTENSIONS = (".txt", ".jsonl", ".parquet")
PART_BYTES = 4 * 2**20  # a longer .txt comes in parts of at most this, so that memory does not depend on its size
# Tests hold broken text on purpose; the others are installed beside the library and are not it.
STDLIB_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus."""

    path: Path
    """Where it lies."""
    name: str
    """Its path relative to the corpus: what messages and the key of the prepared folder use."""
    size: int
    """Bytes."""
    modified: int
    """Time of the last change, in nanoseconds."""


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
    """The files of a corpus, sorted by name.

    ``python-stdlib`` is every .py file of the running Python's standard library without tests, installed packages and
    the files that describe this machine's build. In a folder, hidden files and folders are passed over.

    Raises:
        UserError: nothing is there, or nothing that can be read.
    """
    if path == PYTHON_STDLIB:
        return _stdlib_files()
    if not path:
        raise UserError(f"data.path is empty; name a file, a folder or a glob, or {PYTHON_STDLIB}")
    try:
        files = _find(path, Path(path).expanduser())
    except (OSError, ValueError, RuntimeError) as error:  # no permission; a NUL in the name; an unknown ~user
        raise UserError(f"data.path = {path}: {getattr(error, 'strerror', None) or error}") from None
    return sorted(files, key=lambda file: file.name)


def documents(path: str, text_field: str) -> Iterator[Document]:
    """The documents of a corpus in a fixed order, one at a time.

    A .txt is one document, a line of .jsonl and a row of .parquet are one each. Text is taken as it is, line ends
    included; only a byte order mark at the start of a file is dropped, being a mark of the encoding and no text. Empty
    documents and empty lines of .jsonl are passed over.

    Args:
        path: as in ``data.path``.
        text_field: the field of .jsonl or the column of .parquet.

    Raises:
        UserError: one sentence that names the file and the byte, line or row.
    """
    for file in corpus_files(path):
        try:
            if path == PYTHON_STDLIB:
                yield from _stdlib_document(file)
            elif file.path.suffix.lower() == ".txt":
                yield from _text(file)
            elif file.path.suffix.lower() == ".jsonl":
                yield from _json_lines(file, text_field)
            else:
                yield from _parquet(file, text_field)
        except OSError as error:
            raise UserError(f"{file.path}: {error.strerror or error}") from None


def json_lines(path: Path) -> Iterator[tuple[Any, str]]:
    """What each line of a .jsonl holds, and where it stands, for messages. Empty lines are passed over.

    Raises:
        UserError: names file, line, and byte or column.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            where = f"{path}, line {number}"
            if number == 1:
                line = line.removeprefix(BOM)
            try:
                text = line.decode().strip()
                record = json.loads(text) if text else None
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 text at byte {error.start} of the line") from None
            except json.JSONDecodeError as error:
                raise UserError(f"{where}, column {error.colno}: this is not JSON ({error.msg})") from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
                raise UserError(f"{where}: this is not JSON ({error})") from None
            if text:
                yield record, where


def _find(path: str, place: Path) -> list[CorpusFile]:
    kinds = ", ".join(EXTENSIONS)
    if place.is_dir():
        files = [_file(p, p.relative_to(place).as_posix()) for p in _walk(place) if p.suffix.lower() in EXTENSIONS]
        if not files:
            raise UserError(f"data.path = {path}: the folder holds no {kinds} file")
    elif place.exists():
        if place.suffix.lower() not in EXTENSIONS:
            raise UserError(f"data.path = {path}: files of text must end in {kinds}, one of which this does not")
        files = [_file(place, place.name)]
    elif glob.has_magic(path):
        found = [Path(p) for p in glob.glob(str(place), recursive=True) if os.path.isfile(p)]
        files = [_file(p, p.as_posix()) for p in found if p.suffix.lower() in EXTENSIONS]
        if not files:
            raise UserError(f"data.path = {path}: no {kinds} file among the {len(found)} files that match")
    else:
        raise UserError(f"data.path = {path}: there is no such file or folder; {PYTHON_STDLIB} always works")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}") from None

    for place, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _file(path: Path, name: str) -> CorpusFile:
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return CorpusFile(path, name, state.st_size, state.st_mtime_ns)


def _stdlib_files() -> list[CorpusFile]:
    library = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in _walk(library):
        name = path.relative_to(library)
        of_the_build = path.name.startswith("_sysconfigdata") or any(part.startswith("config-") for part in name.parts)
        if path.suffix == ".py" and not of_the_build and not STDLIB_SKIPPED & set(name.parts[:-1]):
            files.append(_file(path, name.as_posix()))
    if not files:
        raise UserError(f"data.path = {PYTHON_STDLIB}: this Python comes without its source; name a text of your own")
    return sorted(files, key=lambda file: file.name)


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
    with open(file.path, "rb") as stream:
        start = len(BOM) if stream.read(len(BOM)) == BOM else 0
        stream.seek(start)
        size = os.fstat(stream.fileno()).st_size - start
        offset, rest = 0, b""
        while offset < size:
            block = rest + stream.read(PART_BYTES - len(rest))
            at_end = offset + len(block) >= size
            part = block if at_end else block[: _cut(block)]
            rest = block[len(part) :]
            if not part or (at_end and offset + len(part) > size):
                raise UserError(f"{file.path}: the file changed while it was read; start again")
            try:
                text = part.decode()
            except UnicodeDecodeError as error:
                where = start + offset + error.start
                raise UserError(f"{file.path}: not UTF-8 text at byte {where}; save the file as UTF-8") from None
            yield Document(str(file.path), text, offset, size, len(part))
            offset += len(part)


def _cut(block: bytes) -> int:
    """Where to end a part: after its last line, or else before the character that its end may cut."""
    line_end = block.rfind(b"\n") + 1
    if line_end:
        return line_end
    cut = len(block)
    while cut > max(1, len(block) - 4) and 0x80 <= block[cut - 1] < 0xC0:  # bytes inside a character
        cut -= 1
    return cut - 1 if cut > 1 and block[cut - 1] >= 0xC0 else len(block)


def _json_lines(file: CorpusFile, field: str) -> Iterator[Document]:
    for record, where in json_lines(file.path):
        yield from _whole(where, text_of(record, field, where, "data.text_field"))


def text_of(record: Any, field: str, where: str, setting: str) -> str:
    """The text in a field of what a line of a .jsonl holds; ``setting`` is what names the field.

    Raises:
        UserError: there is none, or no text in it.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with the field {field!r}, found {_kind(record)}")
    if field not in record:
        there = ", ".join(list(record)[:10]) or "none"
        raise UserError(f"{where}: there is no field {field!r}; set {setting} to one of the fields here ({there})")
    if not isinstance(record[field], str):
        raise UserError(f"{where}: the field {field!r} must be a string, and is {_kind(record[field])}")
    return record[field]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _parquet(file: CorpusFile, column: str) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{file.path}: reading .parquet needs pyarrow; pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(file.path) as table:
            names = table.schema_arrow.names
            if column not in names:
                there = ", ".join(names[:10])
                raise UserError(
                    f"{file.path}: there is no column {column!r}; "
                    f"set data.text_field to one of the columns here ({there})"
                )
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=[column]):
                for value in batch.column(0):
                    row += 1
                    yield from _parquet_row(value, column, f"{file.path}, row {row}")
    except pyarrow.ArrowException as error:
        raise UserError(f"{file.path}: this is not a readable .parquet file ({str(error).splitlines()[0]})") from None


def _parquet_row(value: Any, column: str, where: str) -> Iterator[Document]:
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text at byte {error.start} of the column {column!r}") from None
    if not isinstance(text, str):
        raise UserError(f"{where}: the column {column!r} must hold strings, and here is {_kind(text)}")
    yield from _whole(where, text)

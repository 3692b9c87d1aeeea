"""Files of a corpus: which are read and which are skipped, and opening them, compressed or not."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
import stat
import sysconfig
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mindspore_palm.errors import UserError

PYTHON_STDLIB = "python-stdlib"
TEXT, JSON_LINES, PARQUET = ".txt", ".jsonl", ".parquet"
FORMATS = (TEXT, JSON_LINES, PARQUET)
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
BOMB_BYTES, BOMB_RATIO = 2**28, 500  # more than both is a bomb; logs compress to a 100th
ARCHIVES = (".tar", ".tgz", ".zip", ".7z", ".rar")
# Tests contain broken text on purpose; the other folders are installed packages, not the library.
STDLIB_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
NAMED = 3  # skipped files that a message names
SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus."""

    path: Path
    """Path on this machine."""
    name: str
    """Path relative to the corpus; files are sorted by it."""
    size: int
    """Bytes on disk."""
    format: str
    """File format: .txt, .jsonl or .parquet."""
    compression: str = ""
    """Compression: .gz, .bz2, .xz or .zst; empty if there is none."""


@dataclass(frozen=True)
class SkippedFile:
    """A file or folder of a corpus that is not read."""

    name: str
    """Path relative to the corpus."""
    size: int
    """Bytes; 0 if it is not a file."""
    reason: str
    """Its extension, or what it is."""
    files: int = 1
    """Number of files: for a hidden folder, all files below it."""


@dataclass(frozen=True)
class Files:
    """Files of a corpus."""

    read: Sequence[CorpusFile]
    """Files that are read, sorted by name."""
    skipped: Sequence[SkippedFile] = ()

    def describe_skipped(self) -> str:
        """Number, size and names of the skipped files, as one phrase; empty if there are none."""
        if not self.skipped:
            return ""
        count, size = sum(file.files for file in self.skipped), sum(file.size for file in self.skipped)
        largest = sorted(self.skipped, key=lambda file: (-file.size, file.name))[:NAMED]
        names = ", ".join(f"{printable(file.name)} ({file.reason})" for file in largest)
        others = count - sum(file.files for file in largest)
        more = f" and {others:,} more" if others else ""
        return f"{count:,} {'file' if count == 1 else 'files'}, {amount(size)}, not read: {names}{more}"


def amount(size: float) -> str:
    """Size with its unit: 12 bytes, 3.4 kB, 5.67 MB."""
    if size < 1000:
        return f"{size:,.0f} {'byte' if size == 1 else 'bytes'}"
    return f"{size / 1e3:,.1f} kB" if size < 1e6 else f"{size / 1e6:,.2f} MB"


def printable(path: str | Path) -> str:
    """A path for messages, on one line of any terminal: unprintable characters become backslash escapes."""
    text = str(path)
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that is not an escaped byte: no file can have this name
        text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def find_files(path: str, setting: str = "data.path") -> Files:
    """Files of a corpus.

    ``python-stdlib`` is every .py file of the running Python's standard library, without tests, installed packages and
    the files that describe this machine's build. An explicitly named file is always read, as text unless its name ends
    in .jsonl or .parquet; so is every file that matches a pattern with an extension, such as ``*.md``. In a folder, and
    with a pattern without an extension, .txt, .jsonl and .parquet are read, compressed or not, and all other files are
    skipped. Links are followed.

    Args:
        path: as in ``data.path``.
        setting: the setting or option that the user gave the path with, for messages.

    Raises:
        UserError: nothing exists at the path, or nothing there can be read.
    """
    if path == PYTHON_STDLIB:
        return _stdlib_files(setting)
    where = f"{setting} = {printable(path)}"
    if path.startswith("hf://"):
        raise UserError(f"{where}: only training on text reads a dataset of the Hub; download it and name its files")
    if not path:
        raise UserError(f"{setting} is empty; name a file, a folder or a glob, or {PYTHON_STDLIB}")
    try:
        files = _find(path, Path(path).expanduser(), where)
    except (OSError, ValueError, RuntimeError) as error:  # no permission; a NUL in the name; an unknown ~user
        raise UserError(f"{where}: {getattr(error, 'strerror', None) or error}") from None
    if not files.read:
        folder, count = Path(path).expanduser().is_dir(), len(files.skipped)
        formats = f"{', '.join(FORMATS)} file"
        problem = f"the folder holds no {formats}" if folder else f"no {formats} among the {count} files that match"
        skipped = f" ({files.describe_skipped()})" if files.skipped else ""
        raise UserError(f"{where}: {problem}{skipped}; name a file explicitly to read it as text")
    return files


@contextmanager
def open_file(path: Path, compression: str = "") -> Iterator[IO[bytes]]:
    """Opens a regular file to read its decompressed content. Pipes and devices are refused, never waited for.

    Raises:
        UserError: this is not a regular file, or its content is not compressed as its name says.
        OSError: the file cannot be read.
    """
    # Without O_NONBLOCK, opening a named pipe waits until a process writes into it.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(handle, "rb") as file:
        check_regular(os.fstat(handle), printable(path))
        if not compression:
            yield file
            return
        try:
            with _decompressed(file, path, compression) as content:
                yield io.BufferedReader(_Bounded(content, os.fstat(handle).st_size, path))
        except (EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
            from_disk = isinstance(error, OSError) and error.errno is not None
            if from_disk or (isinstance(error, ValueError) and not type(error).__module__.startswith("pyarrow")):
                raise
            raise UserError(f"{printable(path)}: this is not a complete {compression} file ({error})") from None


class _Bounded(io.RawIOBase):
    """Decompressed content. A bomb is refused: a small file that would fill memory and disk.

    Args:
        content: to read from.
        size: bytes of the compressed file.
        path: of the file, for messages.
    """

    def __init__(self, content: IO[bytes], size: int, path: Path) -> None:
        self._content, self._size, self._path, self._read = content, size, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._content.read(len(buffer))
        self._read += len(block)
        if self._read > max(BOMB_BYTES, BOMB_RATIO * self._size):
            raise UserError(
                f"{printable(self._path)}: {amount(self._size)} decompress to more than {amount(self._read - 1)}, over "
                f"{BOMB_RATIO} times as much, which no text does; if it is right, decompress the file yourself"
            )
        buffer[: len(block)] = block
        return len(block)


def check_regular(state: os.stat_result, where: str) -> None:
    """Checks that this is a regular file, which can be read more than once.

    Raises:
        UserError: this is a pipe, a socket, a device or a folder.
    """
    special = SPECIAL.get(stat.S_IFMT(state.st_mode))
    if special:
        raise UserError(f"{where}: this is {special}, and text must be in files; write it to a file")


def read_bytes(path: Path) -> bytes:
    """Content of a regular file.

    Raises:
        UserError: this is not a regular file.
        OSError: the file cannot be read.
    """
    with open_file(path) as file:
        return file.read()


def _decompressed(file: IO[bytes], path: Path, compression: str) -> Any:
    if compression == ".gz":
        return gzip.GzipFile(fileobj=file)
    if compression == ".bz2":
        return bz2.BZ2File(file)
    if compression == ".xz":
        return lzma.LZMAFile(file)
    try:
        import pyarrow
    except ImportError:
        raise UserError(
            f"{printable(path)}: reading .zst needs pyarrow; pip install pyarrow, or decompress it"
        ) from None
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd"))


def compression_of(path: Path) -> str:
    """Compression that a file's name indicates: .gz, .bz2, .xz or .zst; empty if there is none."""
    return _format_of(path.name)[1]


def _format_of(name: str) -> tuple[str, str]:
    """Format and compression that a file's name indicates; the format is empty if it is not one of ``FORMATS``."""
    path = Path(name.lower())
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    extension = path.with_suffix("").suffix if compression else path.suffix
    known = extension in FORMATS and not (compression and extension == PARQUET)
    return (extension if known else ""), compression


def _find(path: str, expanded: Path, where: str) -> Files:
    if expanded.is_dir():
        names = ((p, p.relative_to(expanded).as_posix()) for p in _walk(expanded))
        return _sorted((_hidden if p.name.startswith(".") else _in_folder)(p, name) for p, name in names)
    if os.path.lexists(expanded):
        return Files([_explicit(expanded, expanded.name, where)])
    if not glob.has_magic(path):
        raise UserError(f"{where}: there is no such file or folder; {PYTHON_STDLIB} always works")
    matches = [Path(p) for p in glob.glob(str(expanded), recursive=True)]
    extension = Path(path).suffix
    if extension and not glob.has_magic(extension):
        names = ((p, p.as_posix()) for p in matches if "**" not in path or not p.is_dir())
        return _sorted(_in_folder(p, name) if p.is_dir() else _explicit(p, name, where) for p, name in names)
    return _sorted(_in_folder(p, p.as_posix()) for p in matches if "**" not in path or not p.is_dir())


def _sorted(files: Iterator[CorpusFile | SkippedFile]) -> Files:
    both = sorted(files, key=lambda file: file.name)
    return Files([f for f in both if isinstance(f, CorpusFile)], [f for f in both if isinstance(f, SkippedFile)])


def _explicit(path: Path, name: str, where: str) -> CorpusFile:
    """A file that the user named: it is text unless its extension says otherwise."""
    state = _state(path)
    check_regular(state, where if path.name == name else printable(path))
    file_format, compression = _format_of(name)
    inner = Path(name.lower()).with_suffix("").suffix if compression else Path(name.lower()).suffix
    if inner in ARCHIVES or (compression and inner == PARQUET):
        container = "an archive" if inner in ARCHIVES else "a compressed .parquet"
        raise UserError(f"{printable(path)}: this is {container}; unpack it and name the files in it")
    return CorpusFile(path, name, state.st_size, file_format or TEXT, compression)


def _in_folder(path: Path, name: str) -> CorpusFile | SkippedFile:
    """A file that the user did not name: it is read if its extension is that of a known format."""
    file_format, compression = _format_of(name)
    if not file_format and not path.exists():
        return SkippedFile(name, 0, "a broken link")
    state = _state(path)
    special = SPECIAL.get(stat.S_IFMT(state.st_mode))
    if special:
        return SkippedFile(name, 0, special)
    if file_format:
        return CorpusFile(path, name, state.st_size, file_format, compression)
    return SkippedFile(name, state.st_size, Path(name).suffix or "no extension")


def _hidden(path: Path, name: str) -> SkippedFile:
    """A hidden file, or a hidden folder with everything below it; links inside it are not followed."""
    sizes = []
    below = [Path(folder, file) for folder, _, files in os.walk(path) for file in files]
    for file in below if path.is_dir() and not path.is_symlink() else [path]:
        with suppress(OSError):  # deleted meanwhile, or not accessible: it is not read anyway
            state = file.lstat()
            sizes.append(state.st_size if stat.S_ISREG(state.st_mode) else 0)
    return SkippedFile(name, sum(sizes), "hidden", max(1, len(sizes)))


def _state(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise UserError(f"{printable(path)}: a broken link; fix it or remove it") from None
    except OSError as error:
        raise UserError(f"{printable(path)}: {error.strerror}") from None


def _walk(folder: Path, skipped: Collection[str] = ()) -> Iterator[Path]:
    """Everything below a folder, except inside hidden folders and those of skipped names.

    Links are followed; each folder is visited once.
    """

    def stop(error: OSError) -> None:
        raise UserError(f"{printable(error.filename)}: {error.strerror}") from None

    seen = set()
    for parent, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        state = os.stat(parent)
        if (state.st_dev, state.st_ino) in seen:  # a link to a folder above, or to one that was visited already
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        hidden = [name for name in folders if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skipped)
        yield from (Path(parent, name) for name in (*names, *hidden))


def _stdlib_files(setting: str) -> Files:
    library = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in _walk(library, STDLIB_SKIPPED):  # installed packages have ten times as many files
        name = path.relative_to(library)
        describes_build = path.name.startswith("_sysconfigdata") or any(
            part.startswith("config-") for part in name.parts
        )
        if path.suffix == ".py" and not describes_build:
            files.append(CorpusFile(path, name.as_posix(), _state(path).st_size, TEXT))
    if not files:
        raise UserError(
            f"{setting} = {PYTHON_STDLIB}: this Python is installed without its source; name text of your own"
        )
    return Files(sorted(files, key=lambda file: file.name))

"""The files of a corpus: which are read and which are left out, and opening them, packed or not."""

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mindspore_palm.errors import UserError

PYTHON_STDLIB = "python-stdlib"
TEXT, JSON_LINES, PARQUET = ".txt", ".jsonl", ".parquet"
TEXT_SUFFIXES = (TEXT, JSON_LINES, PARQUET)
PACKED = (".gz", ".bz2", ".xz", ".zst")
ARCHIVES = (".tar", ".tgz", ".zip", ".7z", ".rar")
# Tests hold broken text on purpose; the others are installed beside the library and are not it.
STDLIB_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
NAMED = 3  # files that a message names
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
    """Where it lies."""
    name: str
    """Its path relative to the corpus, which decides the order."""
    size: int
    """Bytes on the disk."""
    kind: str
    """How it is read: .txt, .jsonl or .parquet."""
    packing: str = ""
    """How it is packed: .gz, .bz2, .xz or .zst; empty if it is not."""


@dataclass(frozen=True)
class LeftOut:
    """Something in the folder of a corpus that is not read."""

    name: str
    """Its path relative to the corpus."""
    size: int
    """Bytes; 0 where it is no file."""
    why: str
    """Its ending, or what it is."""
    files: int = 1
    """Files that it stands for: of a hidden folder, all below it."""


@dataclass(frozen=True)
class Files:
    """A corpus on the disk."""

    read: Sequence[CorpusFile]
    """Sorted by name."""
    left_out: Sequence[LeftOut] = ()

    def passed_over(self) -> str:
        """What is left out, how many files and how much, in words; empty if nothing is."""
        if not self.left_out:
            return ""
        count, size = sum(file.files for file in self.left_out), sum(file.size for file in self.left_out)
        largest = sorted(self.left_out, key=lambda file: (-file.size, file.name))[:NAMED]
        names = ", ".join(f"{shown(file.name)} ({file.why})" for file in largest)
        others = count - sum(file.files for file in largest)
        more = f" and {others:,} more" if others else ""
        return f"{count:,} {'file' if count == 1 else 'files'}, {amount(size)}, not read: {names}{more}"


def amount(size: float) -> str:
    """Bytes in words: 12 bytes, 3.4 kB, 5.67 MB."""
    if size < 1000:
        return f"{size:,.0f} {'byte' if size == 1 else 'bytes'}"
    return f"{size / 1e3:,.1f} kB" if size < 1e6 else f"{size / 1e6:,.2f} MB"


def shown(path: str | Path) -> str:
    """A path for messages, on one line of any terminal: what cannot be printed comes as backslash escapes."""
    text = str(path)
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that is no byte: no file can have this name
        text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def find_files(path: str, setting: str = "data.path") -> Files:
    """The files of a corpus.

    ``python-stdlib`` is every .py file of the running Python's standard library without tests, installed packages and
    the files that describe this machine's build. A file that is named outright is read, as text unless its name ends
    in .jsonl or .parquet; so are those of a pattern with an ending, such as ``*.md``. Of a folder, and of a pattern
    without an ending, .txt, .jsonl and .parquet are read, packed or not, and the rest is left out. Links are followed.

    Args:
        path: as in ``data.path``.
        setting: what the user named the path with, for messages.

    Raises:
        UserError: nothing is there, or nothing that can be read.
    """
    if path == PYTHON_STDLIB:
        return _stdlib_files(setting)
    where = f"{setting} = {shown(path)}"
    if not path:
        raise UserError(f"{setting} is empty; name a file, a folder or a glob, or {PYTHON_STDLIB}")
    try:
        files = _find(path, Path(path).expanduser(), where)
    except (OSError, ValueError, RuntimeError) as error:  # no permission; a NUL in the name; an unknown ~user
        raise UserError(f"{where}: {getattr(error, 'strerror', None) or error}") from None
    if not files.read:
        folder, count = Path(path).expanduser().is_dir(), len(files.left_out)
        what = "the folder holds no {}" if folder else f"no {{}} among the {count} files that match"
        rest = f" ({files.passed_over()})" if files.left_out else ""
        kinds = f"{', '.join(TEXT_SUFFIXES)} file"
        raise UserError(f"{where}: {what.format(kinds)}{rest}; name a file outright to read it as text")
    return files


@contextmanager
def opened(path: Path, packing: str = "") -> Iterator[IO[bytes]]:
    """Opens a regular file to read its content, unpacked; a pipe or a device is refused and never waited for.

    Raises:
        UserError: it is no file, or is not packed as its name says.
        OSError: it cannot be read.
    """
    # Without O_NONBLOCK, opening a named pipe waits until somebody writes into it.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(handle, "rb") as file:
        check_regular(os.fstat(handle), shown(path))
        if not packing:
            yield file
            return
        try:
            with _unpacked(file, path, packing) as content:
                yield content
        except (EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
            of_the_disk = isinstance(error, OSError) and error.errno is not None
            if of_the_disk or (isinstance(error, ValueError) and not type(error).__module__.startswith("pyarrow")):
                raise
            raise UserError(f"{shown(path)}: this is not a whole {packing} file ({error})") from None


def check_regular(state: os.stat_result, where: str) -> None:
    """Sees that something on the disk is a file with content, which can be read as often as need be.

    Raises:
        UserError: it is a pipe, a socket, a device or a folder.
    """
    what = SPECIAL.get(stat.S_IFMT(state.st_mode))
    if what:
        raise UserError(f"{where}: this is {what}, and text must be in files; write it into one")


def read_bytes(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        UserError: it is no file.
        OSError: it cannot be read.
    """
    with opened(path) as file:
        return file.read()


def _unpacked(file: IO[bytes], path: Path, packing: str) -> Any:
    if packing == ".gz":
        return gzip.GzipFile(fileobj=file)
    if packing == ".bz2":
        return bz2.BZ2File(file)
    if packing == ".xz":
        return lzma.LZMAFile(file)
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{shown(path)}: reading .zst needs pyarrow; pip install pyarrow, or unpack it") from None
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd"))


def packing_of(path: Path) -> str:
    """How a file is packed, as its name says: .gz, .bz2, .xz or .zst; empty if it is not."""
    return _kind(path.name)[1]


def _kind(name: str) -> tuple[str, str]:
    """Kind and packing that a file's name says; no kind where it says none that is read."""
    path = Path(name.lower())
    packing = path.suffix if path.suffix in PACKED else ""
    kind = path.with_suffix("").suffix if packing else path.suffix
    return (kind if kind in TEXT_SUFFIXES and not (packing and kind == PARQUET) else ""), packing


def _find(path: str, place: Path, where: str) -> Files:
    if place.is_dir():
        names = ((p, p.relative_to(place).as_posix()) for p in _walk(place))
        return _sorted((_hidden if p.name.startswith(".") else _in_folder)(p, name) for p, name in names)
    if os.path.lexists(place):
        return Files([_outright(place, place.name, where)])
    if not glob.has_magic(path):
        raise UserError(f"{where}: there is no such file or folder; {PYTHON_STDLIB} always works")
    found = [Path(p) for p in glob.glob(str(place), recursive=True)]
    ending = Path(path).suffix
    if ending and not glob.has_magic(ending):
        names = ((p, p.as_posix()) for p in found if "**" not in path or not p.is_dir())
        return _sorted(_in_folder(p, name) if p.is_dir() else _outright(p, name, where) for p, name in names)
    return _sorted(_in_folder(p, p.as_posix()) for p in found if "**" not in path or not p.is_dir())


def _sorted(files: Iterator[CorpusFile | LeftOut]) -> Files:
    both = sorted(files, key=lambda file: file.name)
    return Files([f for f in both if isinstance(f, CorpusFile)], [f for f in both if isinstance(f, LeftOut)])


def _outright(path: Path, name: str, where: str) -> CorpusFile:
    """A file that the user named: any is text but what its ending says to be something else."""
    state = _state(path)
    check_regular(state, where if path.name == name else shown(path))
    kind, packing = _kind(name)
    inner = Path(name.lower()).with_suffix("").suffix if packing else Path(name.lower()).suffix
    if inner in ARCHIVES or (packing and inner == PARQUET):
        what = "an archive" if inner in ARCHIVES else "a packed .parquet"
        raise UserError(f"{shown(path)}: this is {what}; unpack it and name what is in it")
    return CorpusFile(path, name, state.st_size, kind or TEXT, packing)


def _in_folder(path: Path, name: str) -> CorpusFile | LeftOut:
    """Something that the user did not name: read if it is a file and its ending says how."""
    kind, packing = _kind(name)
    if not kind and not path.exists():
        return LeftOut(name, 0, "a link that leads nowhere")
    state = _state(path)
    special = SPECIAL.get(stat.S_IFMT(state.st_mode))
    if special:
        return LeftOut(name, 0, special)
    if kind:
        return CorpusFile(path, name, state.st_size, kind, packing)
    return LeftOut(name, state.st_size, Path(name).suffix or "no ending")


def _hidden(path: Path, name: str) -> LeftOut:
    """A hidden file, or a hidden folder with all that is in it; links in there are not followed."""
    sizes = []
    below = [Path(folder, file) for folder, _, files in os.walk(path) for file in files]
    for file in below if path.is_dir() and not path.is_symlink() else [path]:
        with suppress(OSError):  # it has gone, or may not be looked at: it is not read anyway
            state = file.lstat()
            sizes.append(state.st_size if stat.S_ISREG(state.st_mode) else 0)
    return LeftOut(name, sum(sizes), "hidden", max(1, len(sizes)))


def _state(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise UserError(f"{shown(path)}: a link that leads nowhere; correct it or take it away") from None
    except OSError as error:
        raise UserError(f"{shown(path)}: {error.strerror}") from None


def _walk(folder: Path) -> Iterator[Path]:
    """All that is in a folder and below, but not what is in hidden folders. Links are followed, each folder once."""

    def stop(error: OSError) -> None:
        raise UserError(f"{shown(error.filename)}: {error.strerror}") from None

    seen = set()
    for place, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in seen:  # a link to a folder above, or to one that was read already
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        hidden = [name for name in folders if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in (*names, *hidden))


def _stdlib_files(setting: str) -> Files:
    library = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in _walk(library):
        name = path.relative_to(library)
        of_the_build = path.name.startswith("_sysconfigdata") or any(part.startswith("config-") for part in name.parts)
        if path.suffix == ".py" and not of_the_build and not STDLIB_SKIPPED & set(name.parts[:-1]):
            files.append(CorpusFile(path, name.as_posix(), _state(path).st_size, TEXT))
    if not files:
        raise UserError(f"{setting} = {PYTHON_STDLIB}: this Python comes without its source; name a text of your own")
    return Files(sorted(files, key=lambda file: file.name))

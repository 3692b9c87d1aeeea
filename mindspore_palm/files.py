"""Paths and files: ~ and links, atomic writes, and locks between processes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mindspore_palm.errors import UserError
from mindspore_palm.file_names import TEMPORARY

try:
    import fcntl
except ImportError:  # Windows: the user must then run one process at a time
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # some network disks have no locks either


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for writing, which takes its name only once all its bytes are on disk.

    Raises:
        OSError: the file cannot be written, or ``path`` is a folder or a device. The error always has ``path`` as its
            file name, even if the system names none (a full disk).
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "this is a folder or a device, not a file", str(path))
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def names_pattern(*patterns: str) -> re.Pattern[str]:
    """Matches names of files that ``write_atomically`` writes, also the ones they have until they are complete."""
    return re.compile(rf"({'|'.join(patterns)})(\.[0-9]+{re.escape(TEMPORARY)})?")


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically."""
    with write_atomically(path) as file:
        try:
            file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
        except UnicodeEncodeError:  # a file name that is not UTF-8; escapes preserve it
            file.write((json.dumps(value, indent=2) + "\n").encode())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file ``path``. Waits while another process holds it, and prints that. A kill releases the lock."""
    with open(path, "ab") as file:
        if not try_lock(file):
            print(f"waiting for another process that is preparing {path.parent}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file releases the lock


def try_lock(file: IO[bytes]) -> bool:
    """Takes the lock of an open file; False if another process holds it. True where the system has no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def sync_folder(folder: Path) -> None:
    """Syncs a folder to disk: without it, a renamed file may not survive a power failure."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def expanded(path: str | Path, origin: str = "") -> Path:
    """Expands a ~ at the start of a path, which a shell does in some positions and not in others.

    Args:
        path: the path as the user wrote it.
        origin: the setting or option with the path, for messages.

    Raises:
        UserError: this user has no home directory here.
    """
    text = os.fspath(path)
    if not text.startswith("~") or os.path.lexists(text):  # a file's name may start with ~
        return Path(path)
    expanded_text = os.path.expanduser(text)
    if expanded_text == text:
        name = Path(text).parts[0]
        raise UserError(
            f"{f'{origin} = ' if origin else ''}{text}: {name} names a home that this machine does not know; write the "
            "path in full"
        )
    return Path(expanded_text)


def existing_folder(path: Path) -> Path:
    """The path of a folder, with ~ expanded.

    Raises:
        UserError: there is no such folder.
    """
    folder = expanded(path)
    try:
        is_folder = folder.is_dir()
    except OSError:  # too long for a name
        is_folder = False
    if not is_folder:
        raise UserError(f"there is no folder {folder}")
    return folder


def check_links(path: Path, origin: str) -> None:
    """Checks that no part of a path that will be created or written to is a broken link or too long a name.

    Raises:
        UserError: a part is a broken link, or no name of a file; names it, and the target of a link.
    """
    if path.parts[:1] == ("~",):
        raise UserError(f"{origin} = {path}: a ~ alone cannot be the folder of a run; write the path in full")
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{origin} = {path}: this name is too long for a file; give a shorter one") from None
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            raise UserError(
                f"{origin} = {path}: {part} is a link to {os.readlink(part)}, and nothing is there; mount or create "
                "the target, or remove the link"
            )

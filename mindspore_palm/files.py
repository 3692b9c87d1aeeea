"""Paths and files: ~ and links, files that are there in full or not at all, and locks between processes."""

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
except ImportError:  # Windows: one process at a time is then the user's care
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # some network disks: as on Windows then


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for writing that takes its name only once every byte of it is on the disk.

    Raises:
        OSError: with ``path`` as its file name, also where the system names none (a full disk while writing); or what
            stands there is no file, and would not be one that takes what is written.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "a folder or a device stands there, not a file", str(path))
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
        except UnicodeEncodeError:  # the name of a file that is not UTF-8; escaped, it comes back as it was
            file.write((json.dumps(value, indent=2) + "\n").encode())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file ``path``; waits, and says so, while another process holds it. A killed process frees it."""
    with open(path, "ab") as file:
        if not try_lock(file):
            print(f"waiting for another process that prepares {path.parent}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file frees the lock


def try_lock(file: IO[bytes]) -> bool:
    """Takes the lock of an open file unless another process holds it; where there are no locks, as if nobody did."""
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
    """A renamed file survives a power cut only when its folder is on the disk too."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def expanded(path: str | Path, origin: str = "") -> Path:
    """A path whose ~ is the home of its user; a shell does that in some places and not in others.

    Args:
        path: as it was given.
        origin: the setting or option that gave it, for messages.

    Raises:
        UserError: there is no such home.
    """
    text = os.fspath(path)
    if not text.startswith("~") or os.path.lexists(text):  # a file may be called like that
        return Path(path)
    found = os.path.expanduser(text)
    if found == text:
        name = Path(text).parts[0]
        raise UserError(
            f"{f'{origin} = ' if origin else ''}{text}: {name} names a home that this machine does not know; write the "
            "path in full"
        )
    return Path(found)


def check_links(path: Path, origin: str) -> None:
    """Sees that no part of a path, which is to be made or written to, is a link that leads nowhere.

    Raises:
        UserError: names the link and where it leads.
    """
    if path.parts[:1] == ("~",):
        raise UserError(f"{origin} = {path}: a ~ alone is no folder of a run; write the path in full")
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            raise UserError(
                f"{origin} = {path}: {part} is a link to {os.readlink(part)}, and nothing is there; mount or make what "
                "it leads to, or remove the link"
            )

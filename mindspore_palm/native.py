"""What building C++ at first use needs: a compiler that is there, and a folder that keeps the result."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mindspore_palm.errors import UserError

CACHE = "MINDSPORE_PALM_CACHE"


def cache_root() -> Path:
    """The folder that keeps what is built once.

    It is MINDSPORE_PALM_CACHE; or the user's cache; or, where that cannot be written (no home, a read-only one), a
    private folder for temporary files.

    Raises:
        UserError: there is none of the three that is this user's own.
    """
    if named := os.environ.get(CACHE):
        return _expanded(named, CACHE)
    own = _user_cache()
    return own if own and _writable(own) else _temporary()


def compiler() -> list[str]:
    """The C++ compiler and its own arguments: CXX, or g++ where that is unset or empty."""
    return os.environ.get("CXX", "").split() or ["g++"]


def missing_tool(name: str) -> bool:
    """Whether a program is neither in PATH nor beside this interpreter."""
    with path_of_interpreter():
        return shutil.which(name) is None


@contextlib.contextmanager
def path_of_interpreter() -> Iterator[None]:
    """Finds programs beside this interpreter first, as in an activated environment: pip puts ninja there."""
    with environment("PATH", with_interpreter(os.environ.get("PATH"))):
        yield


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Gives an environment variable a value for a while; afterwards it is as before, or missing again."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def with_interpreter(path: str | None) -> str:
    """A value of PATH with this interpreter's folder first: msrun starts scripts by the first ``python`` of PATH."""
    return os.pathsep.join([str(Path(sys.executable).parent), path or os.defpath])


def _user_cache() -> Path | None:
    """The user's cache; None for a user without a home."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "mindspore_palm"
    if home := os.environ.get("HOME"):
        return Path(home) / ".cache" / "mindspore_palm"
    try:
        import pwd

        return Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "mindspore_palm"
    except (ImportError, KeyError):  # no such table, or a container's user who is not in it
        return None


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _temporary() -> Path:
    """A folder of this user alone: what is loaded from it is code, and everybody writes beside it."""
    folder = Path(tempfile.gettempdir()) / f"mindspore_palm-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(f"{folder} is not this user's own folder; set {CACHE} to a folder that can be written")
    return folder


def _expanded(text: str, name: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{name} = {text}: there is no such home; write the path in full") from None

"""The builder of the package's C++ parts: each is compiled once, at first use, and kept for the next time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspore_palm.errors import UserError

CACHE = "MINDSPORE_PALM_CACHE"


@dataclass(frozen=True)
class CppPart:
    """A library of the package that is built from C++ on the user's machine."""

    name: str
    """Of the library, NAME.so."""
    title: str
    """Its name in messages."""
    cache_name: str
    """How its folder in the cache begins."""
    sources: Path
    """The folder of its .cc and .h files."""
    settings: Sequence[str]
    """Everything else that decides the result, such as compiler flags and versions of the libraries it links to."""
    compile: Callable[[Sequence[str], Path], Path]
    """Compiles: from the compiler's command and an empty folder to the path of a library in that folder.

    Raises RuntimeError with the compiler's output, or OSError."""
    load: Callable[[Path], Any]
    """Loads a library; raises OSError or ImportError for a file that is not this library."""
    tools: Mapping[str, str] = field(default_factory=dict)
    """Programs that compile needs beside the compiler, and the Debian packages that have them."""
    rebuild_damaged: bool = False
    """Whether a file in the cache that does not load is built again, instead of being refused."""

    def cache_folder(self) -> Path:
        """Where the library is kept: a folder of the cache per machine, settings and content of the sources."""
        digest = hashlib.sha256()
        for setting in (platform.machine(), *self.settings):
            digest.update(setting.encode() + b"\n")
        for path in sorted([*self.sources.glob("*.cc"), *self.sources.glob("*.h")]):
            digest.update(path.name.encode() + path.read_bytes())
        return cache_root() / f"{self.cache_name}-{digest.hexdigest()[:12]}"


def load(part: CppPart) -> Any:
    """A loaded C++ part, built first if it is not in the cache. Processes that need it at once build it once.

    Raises:
        UserError: a compiler or tool is missing, the compiler fails, the cache cannot be written, or what it holds
            does not load.
    """
    folder = part.cache_folder()
    library = folder / f"{part.name}.so"
    if not _ready(part, library):
        with _locked(part, folder):
            if not _ready(part, library):  # another process may have built it while this one waited
                _build(part, library)
    try:
        return part.load(library)
    except (ImportError, OSError) as error:
        raise UserError(f"{part.title} does not load: {error}; delete {folder}, and it is built again") from None


def _ready(part: CppPart, library: Path) -> bool:
    if not library.exists():
        return False
    if part.rebuild_damaged:
        try:
            part.load(library)
        except (ImportError, OSError):
            return False
    return True


@contextlib.contextmanager
def _locked(part: CppPart, folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "wb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(
            f"{part.title} cannot be kept in {folder}: {error.strerror}; set {CACHE} to a folder that can be written"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when this process ends, however it ends
        yield


def _build(part: CppPart, library: Path) -> None:
    """Builds in a folder beside the library, and moves the result there in one step: nobody sees half a file."""
    command = compiler()
    _check_tools(part, command[0])
    folder = library.parent
    work, log = folder / "build", folder / "build.log"
    shutil.rmtree(work, ignore_errors=True)  # what a killed build left; MS-50: MindSpore's builder would wait for it
    try:
        work.mkdir()
        with path_of_interpreter():
            built = part.compile(command, work)
        os.replace(built, library)
    except (RuntimeError, OSError) as error:  # OSError: a full disk, or a compiler that silently writes nothing
        text = f"{error}\n"
        try:
            log.write_text(text, encoding="utf-8", errors="replace")
            details = f" (see {log})"
        except OSError:
            details = ""
        lines = [line for line in text.splitlines() if "error" in line.lower()] or text.splitlines()
        raise UserError(f"{part.title} was not built{details}: {lines[-1].strip()}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_tools(part: CppPart, compiler: str) -> None:
    for tool, package in {compiler: "g++", **part.tools}.items():
        if missing_tool(tool):
            fix = f"install it (Debian and Ubuntu: apt-get install {package})"
            if tool == compiler and tool != "g++":
                fix = "CXX names it: set CXX to a C++ compiler that is there, or unset it for g++"
            raise UserError(f"{part.title} must be built once, and there is no {tool} in PATH: {fix}")


def cache_root() -> Path:
    """The folder that keeps what is built once.

    It is MINDSPORE_PALM_CACHE if that is set; else the user's cache; or, where that cannot be written (no home, or a
    read-only one), a private folder among the temporary files.

    Raises:
        UserError: the temporary folder of that name is not this user's own.
    """
    if named := os.environ.get(CACHE):
        return _expanded(named, CACHE)
    user_cache = _user_cache()
    return user_cache if user_cache and _writable(user_cache) else _temporary()


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
    """Sets an environment variable for a while; afterwards it is as before, or unset again."""
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
    """A folder of this user alone: code is loaded from it, and everybody can write beside it."""
    folder = Path(tempfile.gettempdir()) / f"mindspore_palm-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise UserError(f"{folder} is not this user's own folder; set {CACHE} to a folder that can be written")
    return folder


def _expanded(text: str, name: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{name} = {text}: there is no such home; write the path in full") from None

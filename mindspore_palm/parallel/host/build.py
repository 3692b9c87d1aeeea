"""Builds the C++ part at its first use, by MindSpore's own builder, and keeps it for the next time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import mindspore as ms

from mindspore_palm.errors import UserError
from mindspore_palm.native import CACHE, cache_root, compiler, environment, missing_tool, path_of_interpreter

VERSION = "2.10."
"""Releases of MindSpore whose internals the C++ part was written for (MS-51)."""

_NAME = "mindspore_palm_host"
_HERE = Path(__file__).parent
_CFLAGS = "-O3 -DWITH_BACKEND -DENABLE_CPU"
# MindSpore's libraries are loaded when this one is, and they have among them what the headers' inline functions name.
_LDFLAGS = "-Wl,--unresolved-symbols=ignore-all -lmindspore_common -lmindspore_hardware_abstract -lmindspore_ops_host"
_LOADED: dict[str, ModuleType] = {}


def extension() -> ModuleType:
    """The C++ part, built unless this machine has it already.

    Raises:
        UserError: this MindSpore is not the one it was written for; or it must be built, and the compiler is missing
            or fails; or what is in the cache does not load.
    """
    if _NAME not in _LOADED:
        _check_version()
        folder = cache_folder()
        library = folder / f"{_NAME}.so"
        if not library.exists():
            with _locked(folder):
                if not library.exists():  # another worker may have built it while this one waited
                    _build(folder, library)
        _LOADED[_NAME] = _load(library)
    return _LOADED[_NAME]


def cache_folder() -> Path:
    """Where the built library is kept: a folder per MindSpore, Python, machine and content of the sources."""
    digest = hashlib.sha256()
    for part in (platform.machine(), sys.implementation.cache_tag, _CFLAGS, _LDFLAGS):
        digest.update(part.encode())
    for path in sorted([*_HERE.glob("*.cc"), *_HERE.glob("*.h")]):
        digest.update(path.name.encode() + path.read_bytes())
    return cache_root() / f"host-{ms.__version__}-{digest.hexdigest()[:12]}"


def _check_version() -> None:
    if not ms.__version__.startswith(VERSION):
        raise UserError(
            f"MindSpore {ms.__version__} is installed, but workers on CPU lean on internals of {VERSION}x: install "
            f"mindspore=={VERSION}0, or run on GPU or Ascend"
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "wb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(
            f"the C++ part of the host back end cannot be kept in {folder}: {error.strerror}; set "
            f"{CACHE} to a folder that can be written"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when this process ends, however it ends
        yield


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """MS-50: MindSpore logs all that the compiler says; it goes into a file instead."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _build(folder: Path, library: Path) -> None:
    """Builds in a folder inside `folder`, and moves the result there in one step: nobody sees half of it."""
    command = compiler()
    for tool, package in ((command[0], "g++"), ("ninja", "ninja-build")):
        if missing_tool(tool):
            fix = f"install it (Debian and Ubuntu: apt-get install {package})"
            if tool not in ("g++", "ninja"):
                fix = "CXX names it: set CXX to a C++ compiler that is there, or unset it for g++"
            raise UserError(
                f"the C++ part of the host back end must be built once, and there is no {tool} in PATH: {fix}"
            )
    work = folder / "build"
    shutil.rmtree(work, ignore_errors=True)  # MS-50, what a killed build left: MindSpore's builder would wait
    log = folder / "build.log"
    # Here and not at the top: another MindSpore may not have it, and is told so by _check_version.
    from mindspore.ops import CustomOpBuilder

    third_party = Path(ms.__file__).parent / "include" / "third_party"
    builder = CustomOpBuilder(
        _NAME,
        [str(path) for path in sorted(_HERE.glob("*.cc"))],
        backend="CPU",
        include_paths=[
            str(_HERE),
            str(third_party.parent / "mindspore"),
            str(third_party.parent / "mindspore" / "core"),
            str(third_party / "include"),
            str(third_party / "robin_hood_hashing" / "include"),
        ],
        cflags=_CFLAGS,
        ldflags=_LDFLAGS,
        build_dir=str(work),
    )
    try:
        with _silenced(), path_of_interpreter(), environment("CXX", " ".join(command)):  # an empty CXX is none
            built = builder.build()
        os.replace(built, library)
    except (RuntimeError, OSError) as error:  # OSError: a full disk, or a compiler that says nothing and writes nothing
        text = f"{error}\n"
        with contextlib.suppress(OSError):
            log.write_text(text, encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if "error" in line.lower()] or text.splitlines()
        raise UserError(
            f"the C++ part of the host back end was not built, {log} tells why: {lines[-1].strip()}"
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _load(library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_NAME, library)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise UserError(
            f"the C++ part of the host back end does not load: {error}; delete {library.parent}, and it is built again"
        ) from None
    return module

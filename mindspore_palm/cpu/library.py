"""Libraries of C++ functions for this processor, which MindSpore calls as ops; g++ builds them at first use."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mindspore_palm import native
from mindspore_palm.errors import UserError
from mindspore_palm.machine import processors

SHARED = Path(__file__).parent  # headers that all libraries include
# MS-32, nodelete: MindSpore unloads a library with the last network that calls it, while its threads are in it.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-pthread", "-fno-math-errno", "-Wl,-z,nodelete")
PROCESSORS = "MINDSPORE_PALM_PROCESSORS"  # tells a library how many processors it may use


def cpp_part(name: str, title: str, source: Path, function: str) -> native.CppPart:
    """The C++ part of a library, for this processor and the compiler that CXX names.

    Args:
        name: of the library, and of its folder in the cache.
        title: its name in messages.
        source: the .cc file, in a folder with its own headers.
        function: one that the library must have.
    """
    return native.CppPart(
        name=name,
        title=title,
        cache_name=name,
        sources=source.parent,
        settings=(_processor(), " ".join(native.compiler()), *FLAGS, *_headers()),
        compile=functools.partial(_compile, name, source),
        load=functools.partial(_load, function),
        rebuild_damaged=True,
    )


def load(part: native.CppPart) -> Path | None:
    """The path of a library, built unless it is there; None where it cannot be built, kept or loaded."""
    os.environ[PROCESSORS] = str(processors())  # read once, when the library first computes
    try:
        return native.load(part)
    except (UserError, OSError):
        return None


def _headers() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(SHARED.glob("*.h"))]


def _compile(name: str, source: Path, command: Sequence[str], work: Path) -> Path:
    built = work / f"{name}.so"
    line = [*command, *FLAGS, f"-I{SHARED}", "-shared", "-fPIC", str(source), "-o", str(built)]
    done = subprocess.run(line, capture_output=True, encoding="utf-8", errors="replace")  # noqa: S603 - our own source
    if done.returncode != 0:
        raise RuntimeError(done.stderr or f"{command[0]} ended with exit code {done.returncode}")
    return built


def _load(function: str, library: Path) -> Path:
    """The library's own path: MindSpore loads it by that, but ends with a traceback if it is not a library."""
    if not hasattr(ctypes.CDLL(str(library)), function):
        raise OSError(f"{library} has no function {function}")
    return library


def _processor() -> str:
    """The processor's model and features, for which -march=native builds the library, as far as Linux lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))

"""Has MindSpore's own builder compile the C++ part at first use; ``native`` keeps the result."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import mindspore as ms

from mindspore_palm import native
from mindspore_palm.errors import UserError

VERSION = "2.10."
"""Releases of MindSpore whose internals the C++ part was written for (MS-51)."""

_NAME = "mindspore_palm_host"
_HERE = Path(__file__).parent
_CFLAGS = "-O3 -DWITH_BACKEND -DENABLE_CPU"
# MindSpore's libraries are loaded before this one, and among them they define what the headers' inline functions name.
_LDFLAGS = "-Wl,--unresolved-symbols=ignore-all -lmindspore_common -lmindspore_hardware_abstract -lmindspore_ops_host"
_LOADED: dict[str, ModuleType] = {}


def extension() -> ModuleType:
    """The C++ part, built unless this machine has it already.

    Raises:
        UserError: it was written for another MindSpore; or ``native.load`` cannot build or load it.
    """
    if _NAME not in _LOADED:
        _check_version()
        _LOADED[_NAME] = native.load(cpp_part())
    return _LOADED[_NAME]


def cpp_part() -> native.CppPart:
    """The C++ part, for this MindSpore and this Python."""
    return native.CppPart(
        name=_NAME,
        title="the C++ part of the host back end",
        cache_name=f"host-{ms.__version__}",
        sources=_HERE,
        settings=(ms.__version__, sys.implementation.cache_tag, _CFLAGS, _LDFLAGS),
        compile=_compile,
        load=_load,
        tools={"ninja": "ninja-build"},
    )


def _check_version() -> None:
    if not ms.__version__.startswith(VERSION):
        raise UserError(
            f"MindSpore {ms.__version__} is installed, but workers on CPU need internals of {VERSION}x: install "
            f"mindspore=={VERSION}0, or run on GPU or Ascend"
        )


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """MS-50: MindSpore logs all that the compiler prints, which ``native`` writes into a file instead."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _compile(command: Sequence[str], work: Path) -> Path:
    # Imported here because another MindSpore may not have it, which _check_version says in a sentence.
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
    with _silenced(), native.environment("CXX", " ".join(command)):  # CXX may be empty, which MindSpore would take
        return Path(builder.build())


def _load(library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_NAME, library)
    assert spec and spec.loader  # noqa: S101 - of a path that names a library
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

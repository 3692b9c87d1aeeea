"""The C++ functions of a training step on one CPU (MS-69), and whether they are used: MindSpore calls them as ops."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import ops

from mindspore_palm import native
from mindspore_palm.cpu import library as cpu
from mindspore_palm.parallel.axes import current_layout

SOURCE = cpu.SHARED / "training" / "training.cc"
SWITCH = "MINDSPORE_PALM_FUSED"
"""An environment variable; 0 leaves a training step to MindSpore's own ops."""
_portable = False

Shapes = Callable[..., Any] | Sequence[Sequence[int]]


@functools.cache
def library() -> Path | None:
    """The built library; None where it cannot be built, kept or loaded."""
    return cpu.load(cpp_part())


def cpp_part() -> native.CppPart:
    """The C++ part, for this processor and the compiler that CXX names."""
    return cpu.cpp_part("training", "the C++ part that trains on CPU", SOURCE, "BlockForward")


def wanted() -> bool:
    """Whether C++ is meant for networks in the current layout: on one CPU, in float32, and computed as a whole."""
    here = current_layout()
    on_cpu = here.target == "CPU" and ms.get_context("device_target") == "CPU"
    one_in_float32 = here.devices == 1 and here.compute_dtype == "float32"
    at_once = here.recompute == "none" and not here.unrolled
    off = os.environ.get(SWITCH) == "0"
    return on_cpu and one_in_float32 and at_once and not here.planned and not _portable and not off


def usable() -> bool:
    """Whether networks are computed by C++ on this machine."""
    return wanted() and library() is not None


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Networks that are built in a ``with`` block have MindSpore's own ops only: their graphs leave this machine."""
    global _portable
    before, _portable = _portable, True
    try:
        yield
    finally:
        _portable = before


def custom(function: str, shapes: Shapes, outputs: int) -> ops.Custom:
    """A function of the library as an op with float32 outputs.

    Args:
        function: its name.
        shapes: of the outputs; or a function from the shapes of the inputs to those.
        outputs: their number.
    """
    dtypes = ms.float32 if outputs == 1 else (ms.float32,) * outputs
    return ops.Custom(f"{library()}:{function}", shapes, dtypes, func_type="aot")

"""The C++ of matmuls: operands are packed to the last element, and no further, for vectors of any length."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from mindspore_palm import native
from mindspore_palm.cpu import library

SOURCE = Path(__file__).with_name("packing.cc")


@pytest.mark.parametrize("flags", [(), ("-mno-avx512f",), ("-mno-avx",)], ids=["native", "at most 8", "at most 4"])
def test_every_element_is_packed_and_nothing_after_the_last(flags, tmp_path):
    if flags and platform.machine() != "x86_64":
        pytest.skip("flags of x86 processors")
    program = tmp_path / "packing"
    command = [*native.compiler(), *library.FLAGS, *flags, f"-I{library.SHARED}", str(SOURCE), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == ""

"""The C++ of the decoding step: a row has the same bits alone and beside others, however the compiler is tuned."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mindspore_palm import native
from mindspore_palm.cpu import library
from mindspore_palm.generate.cpu import step

SOURCE = Path(__file__).with_name("same_bits.cc")
SPLIT_CHAINS = "--param=avoid-fma-max-bits=512"  # GCC's tuning for some of AMD's processors


@pytest.mark.parametrize("flags", [(), (SPLIT_CHAINS,), ("-fno-tree-vectorize",)])
def test_a_row_has_the_same_bits_beside_any_others(flags, tmp_path):
    program = tmp_path / "same_bits"
    includes = [f"-I{folder}" for folder in (step.SOURCE.parent, library.SHARED)]
    command = [*native.compiler(), *library.FLAGS, *flags, *includes, str(SOURCE), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    if SPLIT_CHAINS in flags and built.returncode != 0:
        pytest.skip("a compiler without this tuning")
    assert built.returncode == 0, built.stderr
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == ""

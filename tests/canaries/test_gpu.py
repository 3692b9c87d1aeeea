"""Canaries: what MindSpore's GPU back end asks of its surroundings, seen on the stand-in for a GPU."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from canaries.register import still
from gpu.conftest import gpu  # noqa: F401 - a fixture

LATE = """
import mindspore
from mindspore_palm import cuda
cuda.prepare()
print(cuda.problem() or mindspore.hal.is_available("GPU"))
"""


def test_ms_55_the_plugin_opens_only_while_mindspore_is_imported(gpu):  # noqa: F811
    assert gpu("-c", "import mindspore_palm" + LATE).stdout.split()[-1] == "True"
    said = gpu("-c", LATE).stdout.split()[-1]
    still("MS-55", said == "False", said)


PTX, FAT_BINARY = 1, bytes.fromhex("50ed55ba")


def kernels(library: Path) -> Iterator[tuple[bool, int]]:
    """Each module of a library that nvcc compiled: whether it is PTX, and its compute capability, 80 for 8.0."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(FAT_BINARY)
        while start >= 0:
            header, size = struct.unpack_from("<HQ", data, start + 6)
            end, start = start + header + size, start + header
            while start < end:
                kind, _, header, size = struct.unpack_from("<HHIQ", data, start)
                yield kind == PTX, struct.unpack_from("<I", data, start + 28)[0]
                start += header + size
            start = data.find(FAT_BINARY, end)


def test_ms_57_no_kernel_is_built_for_cards_newer_than_8():
    library = next(iter(find_spec("mindspore").submodule_search_locations))
    found = set(kernels(Path(library) / "lib" / "plugin" / "gpu" / "libcuda_ops.so.11"))
    compiled = {capability for is_ptx, capability in found if not is_ptx}
    assert (True, 86) in found and min(compiled) == 60
    still("MS-57", max(compiled) < 90, found)

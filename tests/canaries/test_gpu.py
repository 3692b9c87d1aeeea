"""Canaries: what MindSpore's GPU back end asks of its surroundings, seen on the stand-in for a GPU."""

from __future__ import annotations

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

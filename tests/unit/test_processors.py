"""MindSpore has as many threads as this process may use processors, whatever the machine has."""

from __future__ import annotations

import pytest
from many_processors import threads_after

OPEN = "from mindspore_palm.parallel.context import open_device; open_device('CPU')\n"
BUILD = "from mindspore_palm import PaLM, PaLMConfig; PaLM(PaLMConfig(layers=1, d_model=8, heads=1, vocab_size=8))\n"
ONE = "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])\n"
OWN = "import mindspore as ms; ms.device_context.cpu.op_tuning.threads_num(5)\n"


@pytest.mark.parametrize("start", [OPEN, BUILD, ONE + OPEN], ids=["open_device", "PaLM", "one processor"])
def test_threads_are_as_many_as_processors_of_the_process(start, tmp_path):
    assert threads_after(start, tmp_path) == 2


def test_a_number_that_the_user_has_set_stays(tmp_path):
    assert threads_after(OWN + OPEN, tmp_path) == 5

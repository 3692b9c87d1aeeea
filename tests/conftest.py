"""What all tests share: JAX on CPU, MindSpore in graph mode, small networks and their twins in JAX."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import numpy as np
import pytest

for number in (signal.SIGHUP, signal.SIGINT):  # nohup and the background of a shell leave them ignored, to children too
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGHUP else signal.default_int_handler)


@pytest.fixture(scope="session")
def device():
    """MindSpore, ready to compile."""
    from mindspore_palm.parallel.context import open_device

    return open_device("CPU")


@pytest.fixture
def rng():
    return np.random.default_rng(20220405)

"""What all tests share: JAX on CPU, MindSpore in graph mode, small networks and their twins in JAX."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import numpy as np
import pytest

EXTENDED = Path(__file__).with_name("extended.txt")
APART = ("slow", "tpu", "torch", "harness", "package", "browser", "trackers")
GRAPHS = "MINDSPORE_PALM_GRAPHS"  # not imported: some tests set variables before they import the package

for number in (signal.SIGHUP, signal.SIGINT):  # nohup and the background of a shell leave them ignored, to children too
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGHUP else signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--device", default="CPU", help="CPU, GPU or Ascend: computes the side of MindSpore")


def pytest_configure(config):
    if GRAPHS not in os.environ:  # a fresh folder for all processes of this run, which pytest-xdist starts after this
        os.environ[GRAPHS] = config.graphs = tempfile.mkdtemp(prefix="graphs-")
    if config.getoption("--device") == "GPU":
        import mindspore_palm  # noqa: F401 - before a test imports MindSpore, for which it finds CUDA


def pytest_unconfigure(config):
    if graphs := getattr(config, "graphs", None):
        del os.environ[GRAPHS]
        shutil.rmtree(graphs, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before -m is applied
def pytest_collection_modifyitems(items):
    extended = set(EXTENDED.read_text(encoding="utf-8").splitlines())
    for item in items:
        file, _, test = item.nodeid.partition("::")
        if not extended.isdisjoint((item.nodeid, f"{file}::{test.partition('[')[0]}", file)) and not is_apart(item):
            item.add_marker(pytest.mark.extended)


def is_apart(item):
    """Whether a test has a mark of its own, with which alone it runs, such as slow."""
    return any(item.get_closest_marker(mark) for mark in APART)


@pytest.fixture(scope="session")
def device(request):
    """MindSpore, ready to compile for the device of ``--device``, which the default layout targets as well."""
    from mindspore_palm.parallel.axes import Layout, layout
    from mindspore_palm.parallel.context import open_device

    opened = open_device(request.config.getoption("--device"))
    with layout(Layout(target=opened.name)):
        yield opened


@pytest.fixture
def rng():
    return np.random.default_rng(20220405)

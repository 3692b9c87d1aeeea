"""Every graph of the package has GPU kernels for all its ops, in each dtype that the table of devices promises."""

from __future__ import annotations

import json

import pytest
from switches import SWITCHES, name_of

from mindspore_palm.devices import DEVICES

EXPECTED = {"train adafactor", "train factored", "train adamw", "train lion", "accumulate", "adapters", "evaluate"}
EXPECTED |= {"generate", "peak", "recompute attention", "recompute block", *(f"switch {name_of(s)}" for s in SWITCHES)}


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float16"])
def test_every_graph_launches(gpu, dtype):
    assert dtype in DEVICES["GPU"].dtypes
    ended = gpu("tests/gpu/graphs.py", dtype)
    results = dict(map(json.loads, ended.stdout.splitlines()))
    assert results.pop("device") == "GPU", ended.stderr
    assert set(results) >= EXPECTED
    assert {name: result for name, result in results.items() if result != "launched"} == {}


def test_no_op_takes_bfloat16(gpu):
    """The stand-in refuses what a GPU refuses; so what it launches has a kernel."""
    assert "bfloat16" not in DEVICES["GPU"].dtypes
    ended = gpu("tests/gpu/graphs.py", "bfloat16")
    assert "does not support this kernel data type" in dict(map(json.loads, ended.stdout.splitlines()))["add"]

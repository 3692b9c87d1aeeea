"""Ascend, as far as the wheel tells: MindSpore's own plugin has a kernel for every op of the training step."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import pytest
from ascend.ops import SMALLEST, graphs, kernels, ops_of, settings_of, table
from switches import SWITCHES, name_of

from mindspore_palm.devices import DEVICES
from mindspore_palm.dry_run.compile import partitioned_graph

PAGE = Path(__file__).resolve().parents[2] / "docs" / "design" / "ascend-kernels.md"
pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("gcc", "g++", "nm")),
    reason="there is no gcc, g++ or nm to build what the plugin is linked to",
)


@pytest.fixture(scope="module")
def compiled(device):
    """The ops of the step in each compute dtype."""
    return {dtype: set.union(*map(ops_of, graphs(dtype))) for dtype in DEVICES["Ascend"].dtypes}


def test_every_op_of_the_step_has_a_kernel(compiled):
    ops = sorted(set.union(*compiled.values()), key=str)
    found = dict(zip(ops, kernels(ops), strict=True))
    assert {op: kernel for op, kernel in found.items() if not kernel[0]} == {}
    assert {op: kernel for op, kernel in found.items() if kernel[0] == "acl" and kernel[1]} == {}
    assert {"MatMul", "Rsqrt", "OneHot", "Adam", "Sign"} <= {name for name, _ in ops}


CASES = [(SWITCHES[0], "bfloat16")]  # the standard Transformer
CASES += [case for case in product(SWITCHES, DEVICES["Ascend"].dtypes) if case not in CASES]


@pytest.mark.parametrize(
    ("switches", "dtype"),
    [
        pytest.param(switches, dtype, id=f"{name_of(switches)} {dtype}", marks=[pytest.mark.slow] if number else [])
        for number, (switches, dtype) in enumerate(CASES)
    ],
)
def test_every_switch_has_kernels(device, switches, dtype):
    """The standard Transformer with the factored Adafactor, which has further ops where weights are sharded."""
    optimizer = {"name": "adafactor", "factored": True} if switches == SWITCHES[0] else SMALLEST
    settings = settings_of(dtype, optimizer, {"data": 2, "model": 2}, **switches)
    ops = sorted(ops_of(partitioned_graph(settings, "Ascend", 0)[0]), key=str)
    found = dict(zip(ops, kernels(ops), strict=True))
    assert {op: k for op, k in found.items() if not k[0] or (k[0] == "acl" and k[1])} == {}
    assert any("BFloat16" in dtypes for _, dtypes in ops) == (dtype == "bfloat16")  # of most ablations, only attention


def test_the_plugin_knows_what_it_does_not_have():
    assert kernels([("Nonsense", ("Float32",)), ("OneHot", ("Float32",)), ("OneHot", ("Int32",))]) == [
        ("", []),
        ("acl", [0]),
        ("acl", []),
    ]


def test_attention_is_the_fused_primitive_in_the_dtypes_that_it_takes(compiled):
    half = {"bfloat16": "BFloat16", "float16": "Float16"}
    for dtype, ops in compiled.items():
        fused = [dtypes for name, dtypes in ops if name == "FlashAttentionScore"]
        assert bool(fused) == (dtype in half)
        for dtypes in fused:  # q, k, v, and the mask after three inputs that are not given
            assert dtypes[:3] == (half[dtype],) * 3 and dtypes[3:7] == (None, None, None, "UInt8")


@pytest.mark.slow
def test_the_table_of_the_page_is_current(device):
    assert table() in PAGE.read_text(encoding="utf-8")

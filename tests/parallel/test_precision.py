"""dtypes: where the compiled graph casts, and what float16 matmuls change in the result."""

from __future__ import annotations

import re

import numpy as np
import pytest
from mindspore import Tensor
from parity.twins import ODD, relative, tokens

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.config import Settings
from mindspore_palm.parallel.axes import Layout, layout

MODEL = {"layers": 1, "d_model": 32, "heads": 2, "head_dim": 8, "d_ff": 64, "vocab_size": 128}


@pytest.fixture(scope="module")
def types(device):
    """Op name -> dtypes of its tensors, for each op of a compiled training step in float16."""
    from mindspore_palm.dry_run.compile import partitioned_graph

    settings = Settings.model_validate(
        {
            "model": MODEL,
            "data": {"seq_len": 16},
            "train": {"batch_size": 4, "compute_dtype": "float16"},
            "parallel": {"data": 2},
        }
    )
    lines = partitioned_graph(settings, "GPU", rank=0)[0].splitlines()
    found: dict[str, list[tuple[list[str], list[str]]]] = {}
    for number, line in enumerate(lines):
        node = re.match(r"^ +%\d+\([^)]*\) = (?:PrimFunc_)?(\w+)\(", line)
        if node:
            tensors = re.findall(r"Tensor\[(\w+)\]\]?, \(([\d, ]*)\)", lines[number + 1])
            found.setdefault(node.group(1), []).append(([t for t, _ in tensors], [s for _, s in tensors]))
    return found


def test_matmuls_inside_blocks_are_in_the_compute_dtype(types):
    """Three kernels, forward and twice backward each; only the logits and their two gradients are float32."""
    wide = [kinds for kinds, shapes in types["MatMul"] if any("128" in shape.split(", ")[-2:] for shape in shapes)]
    logits = [kinds for kinds in wide if set(kinds) == {"Float32"}]
    assert len(types["MatMul"]) == 9 + 3
    assert len(logits) == 3
    assert sum(set(kinds) == {"Float16"} for kinds, _ in types["MatMul"]) == 9
    assert all(set(kinds) == {"Float16"} for kinds, _ in types["BatchMatMul"])


@pytest.mark.parametrize("op", ["Rsqrt", "RsqrtGrad", "Softmax", "Exp", "Log", "Square"])
def test_norms_softmax_loss_and_optimizer_are_float32(types, op):
    assert types[op] and all(set(kinds) == {"Float32"} for kinds, _ in types[op])


def test_weights_are_gathered_in_the_compute_dtype_and_updated_in_float32(types):
    gathered = [kinds[-1] for kinds, _ in types["AllGather"]]
    assert sorted(gathered) == ["Float16"] * 3 + ["Float32"]  # three kernels, and the embedding for the logits
    assert all(set(kinds) <= {"Float32"} for kinds, _ in types["Assign"])


def test_float16_matmuls_move_the_logits_by_what_float16_rounds(device, rng):
    """2^-11 per rounding; measured 6e-4 in norm."""
    config = PaLMConfig(**ODD)
    inputs, _ = tokens(rng, config, 2, 24)
    exact = PaLM(config, seed=4)(Tensor(inputs)).asnumpy()
    with layout(Layout(compute_dtype="float16")):
        half = PaLM(config, seed=4)(Tensor(inputs))
    assert half.asnumpy().dtype == np.float32
    assert 1e-5 < relative(half.asnumpy(), exact) < 2e-3

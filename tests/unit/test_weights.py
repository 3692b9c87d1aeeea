"""The table of weights: its parameter counts are the paper's, and the network has exactly its weights."""

from __future__ import annotations

import ast
from math import prod
from pathlib import Path

import numpy as np
import pytest

import mindspore_palm
from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.model.lora import adapt, adapter_weights
from mindspore_palm.model.weights import placements, weights
from mindspore_palm.parallel.axes import Layout, layout
from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.parallel.weights import placement_of
from mindspore_palm.presets import PRESETS

SIZES = {"layers": 2, "d_model": 12, "heads": 3, "head_dim": 4, "d_ff": 18, "vocab_size": 21}
KINDS = [
    {},
    {"vocab_multiple": 8},
    {"attention": "multi_head"},
    {"mlp": "gelu"},
    {"block": "serial"},
    {"norm": "layer_norm", "norm_scale": "around_one", "final_norm_scale": True},
]


def counted(config: PaLMConfig) -> int:
    """Parameters as the paper counts them: without norm scales and without rows that pad the table."""
    padding = (config.padded_vocab - config.vocab_size) * config.d_model
    return sum(prod(weight.shape) for weight in weights(config) if weight.fan_in) - padding


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_counts_what_the_paper_counts(name):
    config = PaLMConfig.from_preset(name)
    assert counted(config) == config.parameter_count()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_network_has_exactly_the_weights_of_the_table(device, kind):
    config = PaLMConfig(**SIZES, **kind)
    table = {weight.name: weight for weight in weights(config)}
    network = {p.name: p for p in PaLM(config).get_parameters()}
    assert {name: p.shape for name, p in network.items()} == {name: w.shape for name, w in table.items()}
    assert counted(config) == config.parameter_count()
    for name, weight in table.items():
        assert placement_of(network[name]) == weight.placement(Layout())
        if not weight.fan_in:
            np.testing.assert_array_equal(network[name].asnumpy(), weight.constant)


def test_a_scale_starts_as_the_identity():
    for around, start in (("around_zero", 0.0), ("around_one", 1.0)):
        config = PaLMConfig(**SIZES, norm_scale=around, final_norm_scale=True, block="serial")
        scales = [weight for weight in weights(config) if not weight.fan_in]
        assert len(scales) == 1 + 2 * 2
        assert {(s.constant, s.axes, s.shape, s.fully_sharded) for s in scales} == {(start, ("embed",), (12,), False)}


def test_the_std_of_a_fused_kernel_differs_by_row():
    o_wo = next(weight for weight in weights(PaLMConfig(**SIZES)) if weight.name == "blocks.1.o_wo")
    head = [12**-0.5] * 4 + [18**-0.5] * 6  # heads * head_dim inputs, then d_ff
    np.testing.assert_allclose(o_wo.std[:, 0], head * 3, rtol=1e-7)


def test_adapters_are_sharded_as_their_kernels(device):
    config, mesh = PaLMConfig(**{**SIZES, "heads": 2}), Layout(Mesh(1, 2, 2))
    pairs = adapter_weights(config, 2)
    assert [a.axes for a, _ in pairs.values()] == [("embed", "one"), ("embed", "one"), ("heads", "one")] * 2
    assert [b.axes for _, b in pairs.values()] == [("one", "heads"), ("one", "per_head"), ("one", "embed")] * 2
    with layout(mesh):
        palm = PaLM(config)
        adapt(palm, 2)
    ours = {p.name: placement_of(p).shard_shape for p in palm.trainable_params()}
    assert ours == {w.name: w.placement(mesh).shard_shape for pair in pairs.values() for w in pair}
    assert {p.name: p.shard_shape for p in placements(config, mesh)}["blocks.0.q_wi"] == (12 // 2, 2 * (4 + 18) // 2)


def test_only_the_factory_imports_ablations():
    package = Path(mindspore_palm.__file__).parent
    importers = [
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "mindspore_palm.model.ablations"
    ]
    assert importers == ["model/factory.py"]

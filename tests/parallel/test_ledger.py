"""The collectives of one layer of each shipped configuration, read from the graph that MindSpore compiled.

Section 4 of the PaLM paper: one all-reduce over model forward and one backward; three all-gathers and three
reduce-scatters of weights over data; between pods, only the shards that the reduce-scatters leave. Gradients of norm
scales, which are replicated, are all-reduced over all devices. Kernels travel in bfloat16, gradients in float32.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.settings import load_settings

YAML = Path(__file__).resolve().parents[2] / "yaml"


def layer_of(config, target="GPU", *overrides):
    """The collectives of a layer: (part, collective, axes, weight, shape in, shape out) to count."""
    from mindspore_palm.dry_run.compile import layer_ledger

    ledger = layer_ledger(load_settings(YAML / f"{config}.yaml", overrides)[0], target).counts
    assert all(count > 0 for count in ledger.values())  # no count decreases
    return Counter({(k.part, k.op, k.axes, k.weight, k.given, k.result): n for k, n in ledger.items()}), ledger


def expected(pods, data, model, d, heads, tokens, recomputed=False):
    """The paper's layer, from its sizes. ``recomputed``: with weights gathered a second time."""
    q_wi, o_wo = (d, heads * (256 + 8 * d // heads) // model), (heads * (256 + 4 * d // heads) // model, d)
    full = {"q_wi": q_wi, "o_wo": o_wo, "kv": (d, 512)}
    shard = {name: (shape[0] // data, shape[1]) for name, shape in full.items()}
    over = {"q_wi": "data", "o_wo": "data", "kv": f"{data} ranks, consecutive"}
    ledger = Counter()
    for name in full:
        ledger["forward", "all-gather", over[name], name, shard[name], full[name]] += 1
        ledger["backward", "reduce-scatter", over[name], name, full[name], shard[name]] += 1
        if recomputed:
            ledger["backward", "all-gather", over[name], name, shard[name], full[name]] += 1
        if pods > 1 and name != "kv":
            ledger["backward", "all-reduce", "pod", name, shard[name], shard[name]] += 1
    # replicated on all model ranks, so that its gradient is summed over those, too
    rest = f"{pods * model} ranks, every {data}th"
    ledger["backward", "all-reduce", rest, "kv", shard["kv"], shard["kv"]] += 1
    everywhere = "pod x data x model" if pods > 1 else "data x model"
    ledger["backward", "all-reduce", everywhere, "norm.scale", (d,), (d,)] += 1
    for way in ("forward", "backward"):
        ledger[way, "all-reduce", "model", "", (tokens, d), (tokens, d)] += 1
    if recomputed:  # a layer's input was stored in shards over model
        ledger["backward", "all-gather", "model", "", (tokens, d // model), (tokens * model, d // model)] += 1
    return ledger


PALM_540B = dict(pods=2, data=256, model=12, d=18432, heads=48, tokens=4 * 2048)


def test_palm_540b_on_two_pods(device):
    ledger, kinds = layer_of("palm_540b")
    assert ledger == expected(**PALM_540B, recomputed=True)
    gathered = {kind.dtype for kind in kinds if kind.op == "all-gather"}
    summed = {kind.dtype for kind in kinds if kind.op == "reduce-scatter"}
    assert gathered == {"BFloat16"} and summed == {"Float32"}


@pytest.mark.slow
def test_palm_540b_that_keeps_activations(device):
    assert layer_of("palm_540b", "GPU", "parallel.recompute=none")[0] == expected(**PALM_540B)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["GPU", "Ascend"])
def test_palm_62b(device, target):
    # micro_batch 128 over 64 data ranks
    assert layer_of("palm_62b", target)[0] == expected(1, 64, 8, d=8192, heads=32, tokens=2 * 2048)


def standard(data, model, d, sequences, gathered):
    """A layer of the standard Transformer, recomputed: the paper's, with a second all-reduce each way, a third one as
    attention is recomputed for the mlp, and a kv that is sharded by head. ``gathered``: weights are, over data."""
    full = {"q_wi": (d, 5 * d // model), "kv": (d, 2 * d // model), "o_wo": (5 * d // model, d)}
    ledger, tokens = Counter(), sequences * 2048
    for name, shape in full.items():
        shard = (shape[0] // data, shape[1])
        if gathered:
            ledger["forward", "all-gather", "data", name, shard, shape] += 1
            ledger["backward", "all-gather", "data", name, shard, shape] += 1
            ledger["backward", "reduce-scatter", "data", name, shape, shard] += 1
        else:
            ledger["backward", "all-reduce", "data", name, shape, shape] += 1
    for name in ("norm.scale", "mlp_norm.scale"):
        ledger["backward", "all-reduce", "data x model", name, (d,), (d,)] += 1
    ledger["forward", "all-reduce", "model", "", (tokens, d), (tokens, d)] = 2
    ledger["backward", "all-reduce", "model", "", (tokens, d), (tokens, d)] = 3
    ledger["backward", "all-gather", "model", "", (tokens, d // model), (tokens * model, d // model)] = 1
    return ledger


@pytest.mark.slow
def test_gpt3_175b(device):
    ledger, kinds = layer_of("gpt3_175b")
    assert ledger == standard(128, 8, d=12288, sequences=4, gathered=True)
    assert {kind.dtype for kind in kinds if kind.op == "all-gather"} == {"BFloat16"}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["GPU", "Ascend"])
def test_mt_nlg_530b(device, target):
    assert layer_of("mt_nlg_530b", target)[0] == standard(8, 8, d=20480, sequences=1, gathered=False)


@pytest.mark.slow
def test_a_parallel_block_with_other_parts_has_one_all_reduce_each_way(device):
    switches = ("model.attention=multi_head", "model.mlp=gelu", "model.norm=layer_norm", "parallel.recompute=none")
    ledger, _ = layer_of("palm_540b", "GPU", *switches)
    assert sum(n for key, n in ledger.items() if key[1:4] == ("all-reduce", "model", "")) == 2
    assert {key[2] for key in ledger if key[3] == "kv"} == {"data", "pod"}  # and no longer consecutive ranks


def test_palm_8b_for_ascend(device):
    ledger, _ = layer_of("palm_8b", "Ascend")
    assert ledger == expected(1, 4, 2, d=4096, heads=16, tokens=2 * 2048)


def test_ascend_gets_its_fused_attention_sharded_over_heads(device):
    from mindspore_palm.dry_run.compile import partitioned_graph

    settings, _ = load_settings(YAML / "palm_8b.yaml", ["model.layers=1", "parallel.recompute=none"])
    graph, _ = partitioned_graph(settings, "Ascend", rank=0)
    line = next(text for text in graph.splitlines() if "= PrimFunc_FlashAttentionScore(" in text)
    shapes = graph.splitlines()[graph.splitlines().index(line) + 1]
    # [batch, length, heads, head_dim]: 8 of 16 heads, all positions, and the one head of keys and of values
    assert shapes.count("<Tensor[BFloat16], (2, 2048, 8, 256)>") >= 1
    assert shapes.count("<Tensor[BFloat16], (2, 2048, 1, 256)>") == 2
    assert "BatchMatMul" not in graph
    plain, _ = partitioned_graph(settings, "GPU", rank=0)
    assert "FlashAttention" not in plain and "BatchMatMul" in plain


def test_the_axes_of_a_group_follow_from_its_ranks():
    from mindspore_palm.dry_run.ledger import group_axes

    mesh = Mesh(2, 4, 3)
    assert group_axes(mesh, 0, [0, 1, 2]) == "model"
    assert group_axes(mesh, 5, [5, 17]) == "pod"
    assert group_axes(mesh, 0, list(range(24))) == "pod x data x model"
    assert group_axes(mesh, 0, [0, 1, 2, 3]) == "4 ranks, consecutive"

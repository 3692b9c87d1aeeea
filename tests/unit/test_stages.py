"""Stages of a pipeline: layers by work, and weights where their layers are."""

from __future__ import annotations

from itertools import product

import pytest

from mindspore_palm import PaLM
from mindspore_palm.config import OptimizerConfig, PaLMConfig, ParallelConfig, Settings
from mindspore_palm.cost.memory import memory_by_kind
from mindspore_palm.model.weights import placements
from mindspore_palm.optim import OPTIMIZERS, make_optimizer
from mindspore_palm.parallel import axes
from mindspore_palm.parallel.axes import Layout
from mindspore_palm.parallel.check import layout_of
from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.parallel.stages import balanced, logits_in_layers, stage_layers
from mindspore_palm.parallel.weights import placement_of
from mindspore_palm.plan.sharding import describe_layout

SIZES = dict(layers=6, d_model=16, heads=2, head_dim=8, d_ff=32, vocab_size=64)


def compositions(layers, stages):
    """All ways to give every stage a layer at least."""
    if stages == 1:
        return [(layers,)]
    return [(n, *rest) for n in range(1, layers - stages + 2) for rest in compositions(layers - n, stages - 1)]


@pytest.mark.parametrize("logits", [0.0, 0.3, 1.0, 2.6, 40.0])
def test_no_other_split_has_a_faster_slowest_stage(logits):
    for layers, stages in product(range(2, 11), range(2, 6)):
        if layers < stages:
            continue

        def slowest(split, logits=logits):
            return max(*split[:-1], split[-1] + logits)

        ours = balanced(layers, stages, logits)
        assert sum(ours) == layers and len(ours) == stages and min(ours) >= 1
        assert slowest(ours) == min(map(slowest, compositions(layers, stages))), (layers, stages, ours)
        assert max(ours[:-1]) - min(ours[:-1]) <= 1


def test_the_logits_of_palm_540b_are_as_much_work_as_a_layer():
    """256,000 x 18,432 products for a token, and 18,432 x (48 x 256 x 2 + 2 x 256 + 3 x 73,728) for a layer."""
    palm = PaLMConfig.from_preset("palm_540b")
    assert logits_in_layers(palm) == pytest.approx(256_000 / (2 * 48 * 256 + 2 * 256 + 3 * 73_728))
    settings = Settings(model=palm, parallel=ParallelConfig(stages=8))
    assert stage_layers(settings) == (15,) * 7 + (13,)  # 118 layers and 1.03: 14.9 a stage


def test_layers_by_hand():
    by_hand = Settings(model=PaLMConfig(**SIZES), parallel=ParallelConfig(stages=3, stage_layers=[1, 4, 1]))
    assert [layout_of(by_hand).stage(layer) for layer in range(6)] == [0, 1, 1, 1, 1, 2]
    assert [Layout().stage(layer) for layer in range(6)] == [0] * 6


def test_a_weight_is_held_by_the_devices_of_its_stage_alone():
    """Two stages of two data and two model ranks: eight devices; each stage is a mesh of its own."""
    config = PaLMConfig(**SIZES, final_norm_scale=True)
    layout = Layout(Mesh(data=2, model=2, stages=2), stage_layers=(4, 2))
    alone = {p.name: p for p in placements(config, Layout(Mesh(data=2, model=2)))}
    for placement in placements(config, layout):
        stage = 1 if placement.name.startswith(("blocks.4", "blocks.5", "final_norm")) else 0
        assert placement.stage == stage
        assert [rank for rank in range(8) if placement.holds(rank)] == list(range(4 * stage, 4 * stage + 4))
        if placement.name == "embedding":  # shared by two stages, so that it is not sharded over data
            assert placement.shard_shape == (32, 16) and placement.replicas == 2
            continue
        one = alone[placement.name]
        assert placement.shard_shape == one.shard_shape and placement.replicas == one.replicas
        for rank in range(4):
            assert placement.window(4 * stage + rank) == one.window(rank)
            assert placement.is_first(4 * stage + rank) == one.is_first(rank)
            assert not placement.is_first(4 * (1 - stage) + rank)


@pytest.mark.parametrize("settings", [{"name": name} for name in OPTIMIZERS] + [{"factored": True}], ids=str)
def test_every_moment_is_saved_by_the_stage_that_updates_it(device, settings):
    """The vectors of a factored v as well; those of the first stage stay zero for weights of the others."""
    layout = Layout(Mesh(model=2, stages=2), stage_layers=(4, 2), planned=True)
    with axes.layout(layout):
        palm = PaLM(PaLMConfig(**SIZES))
        optimizer = make_optimizer(palm.trainable_params(), OptimizerConfig(**settings), steps=2)
    moments = [p for p in optimizer.get_parameters() if p.name.startswith(("m.", "v.", "v_column.")) and p.ndim]
    stages = {
        name: [placement_of(p).stage for p in moments if f".{name}." in p.name] for name in ("blocks.3", "blocks.4")
    }
    assert len(stages["blocks.3"]) == len(stages["blocks.4"]) >= 4
    assert set(stages["blocks.3"]) == {0} and set(stages["blocks.4"]) == {1}


def test_the_table_of_shards_names_the_stage():
    settings = Settings(model=PaLMConfig(**SIZES), parallel=ParallelConfig(stages=2, model=2, stage_layers=[4, 2]))
    layout = layout_of(settings)
    text = describe_layout(layout, placements(settings.model, layout))
    assert "2 stages x 1 pods x 1 data x 2 model = 4 devices" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.startswith(("embed", "blocks"))}
    assert {name: row[-1] for name, row in rows.items() if "q_wi" in name or name == "embedding"} == {
        "embedding": "0",
        "blocks.0-3.q_wi": "0",
        "blocks.4-5.q_wi": "1",
    }


def test_the_first_stage_holds_more_activations_and_the_last_one_the_logits():
    """1F1B: as many micro-batches are between their two passes on the first stage as there are stages."""

    def kinds(stages, layers):
        train = {"batch_size": 16, "micro_batch": 4}
        sizes = {**SIZES, "layers": layers, "vocab_size": 16}
        parallel = {"stages": stages, "stage_layers": [layers // stages] * stages if stages > 1 else []}
        settings = Settings.model_validate({"model": sizes, "train": train, "parallel": parallel})
        return memory_by_kind(settings, layout_of(settings))

    one, two, four = kinds(1, 2), kinds(2, 4), kinds(4, 8)
    assert two["activations"] == 2 * one["activations"] and four["activations"] == 4 * one["activations"]

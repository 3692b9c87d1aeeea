"""PaLM's numbering of devices, its groups, and the shard of a weight that each device holds."""

from __future__ import annotations

import numpy as np
import pytest

from mindspore_palm import PaLMConfig
from mindspore_palm.model.weights import placements
from mindspore_palm.parallel.axes import TABLES, Layout
from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.parallel.placement import Placement

PALM = Mesh(pods=2, data=256, model=12)


def test_model_is_the_fastest_axis_and_pods_the_slowest():
    assert PALM.devices == 6144
    assert PALM.coordinates(0) == {"stage": 0, "pod": 0, "data": 0, "model": 0}
    assert PALM.coordinates(11) == {"stage": 0, "pod": 0, "data": 0, "model": 11}
    assert PALM.coordinates(12) == {"stage": 0, "pod": 0, "data": 1, "model": 0}
    assert PALM.coordinates(3072) == {"stage": 0, "pod": 1, "data": 0, "model": 0}
    assert all(PALM.rank(PALM.coordinates(rank)) == rank for rank in (0, 11, 3071, 3072, 6143))
    with pytest.raises(ValueError, match="rank 6144 is not on a mesh of 6144"):
        PALM.coordinates(6144)


def test_stages_are_the_slowest_axis_of_all():
    """As MindSpore numbers the ranks of a pipeline."""
    mesh = Mesh(pods=2, data=2, model=3, stages=4)
    assert (mesh.devices, mesh.stage_devices) == (48, 12)
    assert mesh.coordinates(12) == {"stage": 1, "pod": 0, "data": 0, "model": 0}
    assert [mesh.stage(rank) for rank in (0, 11, 12, 35, 36, 47)] == [0, 0, 1, 2, 3, 3]
    assert mesh.group(14, ["stage"]) == [2, 14, 26, 38]
    assert str(mesh) == "4 stages x 2 pods x 2 data x 3 model" and "stages" not in str(PALM)


def test_groups_by_axis():
    assert PALM.group(13, ["model"]) == list(range(12, 24))
    assert PALM.group(13, ["pod"]) == [13, 3085]
    assert PALM.group(13, ["data"])[:3] == [1, 13, 25] and len(PALM.group(13, ["data"])) == 256
    assert PALM.group(13, ["data", "model"]) == list(range(3072))


def test_rows_of_a_batch_are_sharded_over_pods_and_data_and_replicated_over_model():
    layout = Layout(PALM)
    assert layout.rows(0, 2048) == layout.rows(11, 2048) == slice(0, 4)
    assert layout.rows(12, 2048) == slice(4, 8)
    assert layout.rows(3072, 2048) == slice(1024, 1028)
    assert Layout().rows(0, 7) == slice(0, 7)


@pytest.mark.parametrize(
    ("mesh", "shard", "strategy"),
    [
        ((2, 2, 2), "pod", "palm"),
        ((2, 2, 2), "all", "palm"),
        ((1, 4, 2), "off", "palm"),
        ((1, 2, 4), "pod", "palm"),
        ((2, 2, 2), "pod", "data"),
        ((1, 2, 4), "pod", "model"),
    ],
)
@pytest.mark.parametrize("attention", ["multi_query", "multi_head"])
def test_shards_of_first_replicas_cover_every_weight_exactly_once(mesh, shard, strategy, attention):
    sizes = {"layers": 1, "d_model": 64, "heads": 8, "head_dim": 8, "d_ff": 128, "vocab_size": 128}
    config = PaLMConfig(**sizes, attention=attention)
    layout = Layout(Mesh(*mesh), TABLES[strategy], shard)
    for weight in placements(config, layout):
        holders = np.zeros(weight.shape, int)
        firsts = np.zeros(weight.shape, int)
        for rank in range(layout.devices):
            for window in weight.windows(rank):
                assert tuple(part.stop - part.start for part in window) == weight.window_shape
                holders[window] += 1
                firsts[window] += weight.is_first(rank)
        assert (holders == weight.replicas).all() and (firsts == 1).all(), weight.name


def test_palm_540b_is_sharded_as_in_the_paper():
    """Section 4: 12-way model x 256-way fully sharded in each of two pods. The embedding needs rows for 12 x 256."""
    config = PaLMConfig.from_preset("palm_540b", vocab_multiple=3072)
    by_name = {p.name: p for p in placements(config, Layout(PALM))}
    assert by_name["embedding"].shard_shape == (258048 // 3072, 18432)
    assert by_name["blocks.0.q_wi"].shard_shape == (18432 // 256, 159744 // 12)
    assert by_name["blocks.117.o_wo"].shard_shape == (86016 // 3072, 18432)
    assert by_name["blocks.0.kv"].shard_shape == (72, 512) and by_name["blocks.0.kv"].replicas == 24
    assert {by_name[name].replicas for name in ("embedding", "blocks.0.q_wi", "blocks.0.o_wo")} == {2}
    assert by_name["blocks.0.norm.scale"].replicas == 6144
    assert sum(1 for p in by_name.values()) == 1 + 4 * 118


def test_what_does_not_divide_stays_replicated():
    weight = Placement("embedding", (100, 8), ("vocab", "embed"), Layout(Mesh(1, 3, 2)))
    assert weight.data_shards == 1 and weight.shard_shape == (50, 8)

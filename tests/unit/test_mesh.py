"""Who is where: PaLM's numbering of devices, groups, and which slice of a weight each of them holds."""

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
    assert PALM.coordinates(0) == {"pod": 0, "data": 0, "model": 0}
    assert PALM.coordinates(11) == {"pod": 0, "data": 0, "model": 11}
    assert PALM.coordinates(12) == {"pod": 0, "data": 1, "model": 0}
    assert PALM.coordinates(3072) == {"pod": 1, "data": 0, "model": 0}
    assert all(PALM.rank(PALM.coordinates(rank)) == rank for rank in (0, 11, 3071, 3072, 6143))
    with pytest.raises(ValueError, match="rank 6144 is not on a mesh of 6144"):
        PALM.coordinates(6144)


def test_groups_by_axis():
    assert PALM.group(13, ["model"]) == list(range(12, 24))
    assert PALM.group(13, ["pod"]) == [13, 3085]
    assert PALM.group(13, ["data"])[:3] == [1, 13, 25] and len(PALM.group(13, ["data"])) == 256
    assert PALM.group(13, ["data", "model"]) == list(range(3072))


def test_rows_of_a_batch_are_cut_over_pods_and_data_and_shared_by_model_ranks():
    place = Layout(PALM)
    assert place.rows(0, 2048) == place.rows(11, 2048) == slice(0, 4)
    assert place.rows(12, 2048) == slice(4, 8)
    assert place.rows(3072, 2048) == slice(1024, 1028)
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
def test_slices_of_first_holders_cover_every_weight_exactly_once(mesh, shard, strategy):
    config = PaLMConfig(layers=1, d_model=64, heads=8, head_dim=8, d_ff=128, vocab_size=128)
    place = Layout(Mesh(*mesh), TABLES[strategy], shard)
    for weight in placements(config, place):
        holders = np.zeros(weight.shape, int)
        firsts = np.zeros(weight.shape, int)
        for rank in range(place.devices):
            window = weight.window(rank)
            assert tuple(part.stop - part.start for part in window) == weight.slice_shape
            holders[window] += 1
            firsts[window] += weight.is_first(rank)
        assert (holders == weight.replicas).all() and (firsts == 1).all(), weight.name


def test_palm_540b_is_cut_as_the_paper_says():
    """12-way model x 256-way fully sharded in a pod, twice: section 4. The table needs rows for 12 x 256."""
    config = PaLMConfig.from_preset("palm_540b", vocab_multiple=3072)
    there = {p.name: p for p in placements(config, Layout(PALM))}
    assert there["embedding"].slice_shape == (258048 // 3072, 18432)
    assert there["blocks.0.q_wi"].slice_shape == (18432 // 256, 159744 // 12)
    assert there["blocks.117.o_wo"].slice_shape == (86016 // 3072, 18432)
    assert there["blocks.0.kv"].slice_shape == (72, 512) and there["blocks.0.kv"].replicas == 24
    assert {there[name].replicas for name in ("embedding", "blocks.0.q_wi", "blocks.0.o_wo")} == {2}
    assert there["blocks.0.norm.scale"].replicas == 6144
    assert sum(1 for p in there.values()) == 1 + 4 * 118


def test_what_does_not_come_out_even_is_left_whole():
    weight = Placement("embedding", (100, 8), ("vocab", "embed"), Layout(Mesh(1, 3, 2)))
    assert weight.data_slices == 1 and weight.slice_shape == (50, 8)

"""The table of logical axes: each op of the model declares its axes, and one table gives PaLM's sharding."""

from __future__ import annotations

from typing import get_args

import pytest
from mindspore import ops
from parallel.suite import QUICK, SLOW

from mindspore_palm import PaLMConfig
from mindspore_palm.config import ParallelConfig
from mindspore_palm.model.projection import MatmulThenSplit
from mindspore_palm.parallel.axes import DATA_AXES, PALM_AXES, TABLES, Layout, current_layout, layout, shard
from mindspore_palm.parallel.mesh import Mesh

POD = Layout(Mesh(pods=2, data=256, model=12))


def test_palm_540b_shards_tokens_512_ways_and_heads_12_ways():
    assert POD.devices == 6144
    assert POD.strategy(("tokens", "embed"), ("embed", "heads")) == ((512, 1), (1, 12))
    assert POD.strategy(("tokens", "vocab"), ()) == ((512, 12), ())


def test_another_table_is_another_strategy():
    data_only = Layout(POD.mesh, DATA_AXES)
    assert data_only.strategy(("tokens", "embed"), ("embed", "heads")) == ((6144, 1), (1, 1))


def test_settings_offer_every_table_and_the_parity_suite_trains_it():
    assert set(get_args(ParallelConfig.model_fields["strategy"].annotation)) == set(TABLES)
    assert {case.table for case in [*QUICK, *SLOW]} == set(TABLES)


def test_every_table_maps_the_same_axes():
    assert all(table.keys() == PALM_AXES.keys() for table in TABLES.values())


def test_workers_that_decode_shard_heads_and_vocabulary_and_replicate_the_cache():
    two = Layout(Mesh(model=2), TABLES["model"])
    assert (two.shards("heads"), two.shards("vocab")) == (2, 2)
    assert two.strategy(("batch", "context", "per_head")) == ((1, 1, 1),)  # keys and values of one head


def test_an_undeclared_axis_is_an_error_on_one_device_too():
    with pytest.raises(KeyError, match=r"'expert'.*declare it"):
        shard(ops.MatMul(), ("tokens", "expert"))


def test_one_device_gets_no_strategy_and_many_do(device):
    assert getattr(shard(ops.MatMul(), ("tokens", "embed"), ("embed", "heads")), "in_strategy", None) is None
    with layout(POD):
        sharded = shard(ops.MatMul(), ("tokens", "embed"), ("embed", "heads"))
    assert sharded.in_strategy == ((512, 1), (1, 12))
    assert current_layout().devices == 1


def test_activations_are_split_where_heads_are_sharded(device):
    config = PaLMConfig()
    assert MatmulThenSplit(config).one_device
    with layout(POD):
        assert not MatmulThenSplit(config).one_device

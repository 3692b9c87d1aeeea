"""MindSpore's parallel context: set in one place, to what PaLM needs instead of MindSpore's defaults."""

from __future__ import annotations

import pytest
from mindspore import nn

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.parallel import host
from mindspore_palm.parallel.axes import Layout, layout
from mindspore_palm.parallel.check import layout_of
from mindspore_palm.parallel.context import (
    join_workers,
    lost_workers,
    out_of_memory,
    parallel_settings,
    partition,
)
from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.parallel.workers import ROLE, WORKER


class Net(nn.Cell):
    def construct(self, x, count):
        return x * count


@pytest.fixture
def sixteen(device):
    """This process as rank 3 of 16."""
    host.install_dry_run(3, 16)
    with layout(Layout(Mesh(pods=2, data=4, model=2), recompute="block")) as place:
        yield place
    host.uninstall()


def test_what_is_set(sixteen):
    net = partition(Net(), ("batch", "length"), ())
    assert net._parallel_mode == "semi_auto" and net._device_num == 16
    assert net._gradients_mean is False  # the loss is a mean over the global batch already
    assert net._parallel_optimizer_threshold == 0  # small weights are sharded, too
    assert net._enable_parallel_optimizer and net._optimizer_weight_shard_size == 4  # inside a pod
    assert net._optimizer_level == "level3"  # recomputed blocks gather their weights again
    assert net._dataset_strategy_config == ((8, 1), ())  # every worker feeds its own rows
    assert not net._full_batch


@pytest.mark.parametrize(("shard_weights", "size"), [("off", None), ("pod", 4), ("all", 8)], ids=["off", "pod", "all"])
def test_how_far_weights_are_sharded(shard_weights, size):
    settings = Settings.model_validate({"parallel": {"pods": 2, "data": 4, "model": 2, "shard_weights": shard_weights}})
    hsdp = parallel_settings(layout_of(settings, "GPU")).get("hsdp")
    assert hsdp == (size and {"shard_size": size, "threshold": 0, "optimizer_level": "level1"})


def test_off_may_be_written_as_yaml_reads_it():
    assert Settings.model_validate({"parallel": {"shard_weights": False}}).parallel.shard_weights == "off"


def test_one_device_gets_the_network_itself(device):
    net = Net()
    assert partition(net, ("batch", "length"), ()) is net


def test_a_mesh_of_another_size_than_the_workers(monkeypatch):
    monkeypatch.setenv(WORKER, "4")
    monkeypatch.setenv(ROLE, "MS_WORKER")
    with pytest.raises(UserError, match="is 8, and msrun started 4 workers; set the four to a product of 4"):
        join_workers(8, "CPU")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("Memory not enough: alloc size 99999999999 B"),
        RuntimeError("Allocate memory failed, size: 4"),
        RuntimeError("Out of Memory!!! Request memory size: 4"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_too_little_memory_is_a_sentence(error):
    with pytest.raises(UserError, match="or the model smaller"), out_of_memory():
        raise error


def test_a_worker_that_is_gone_or_hangs_is_named():
    for words in ("worker 3 (pid 77) is gone", "worker 3 (pid 77) has not come for 600 s"):
        with pytest.raises(UserError) as caught, lost_workers():
            raise RuntimeError(f"{words}: all_reduce of 4 B in group g is not possible")
        assert str(caught.value).startswith(f"{words}: this worker cannot continue")


def test_other_errors_stay_what_they_are():
    for guard in (out_of_memory, lost_workers):
        with pytest.raises(RuntimeError, match="shapes differ"), guard():
            raise RuntimeError("shapes differ: failed to infer")

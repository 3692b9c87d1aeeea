"""The key of a network: it is the same for the same network, and changes with everything that decides the graph."""

from __future__ import annotations

import re

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, ops
from unit.graph_cases import BATCH, COUNT, Times, built

from mindspore_palm.graph_cache import key
from mindspore_palm.graph_cache.key import NoKeyError, key_of, sources
from mindspore_palm.model import loss as loss_module
from mindspore_palm.parallel import fused
from mindspore_palm.train import step as step_module
from mindspore_palm.train.evaluate import SummedCrossEntropy

SWITCHES = [
    "model.layers=2",
    "model.d_ff=64",
    "model.block=serial",
    "model.attention=multi_head",
    "model.mlp=gelu",
    "model.norm=layer_norm",
    "model.norm_epsilon=0.001",
    "model.norm_scale=around_one",
    "model.final_norm_scale=true",
    "model.scaled_logits=false",
    "model.xpos_base=512",
    "optimizer.name=adamw",
    "optimizer.name=lion",
    "optimizer.factored=true",
    "optimizer.update_clip=2.0",
    "optimizer.lr_squared_decay=false",
    "optimizer.clip_norm=0.5",
    "optimizer.learning_rate=0.02",
    "optimizer.schedule=cosine",
    "train.z_loss=0.001",
    "train.compute_dtype=float16",
    "parallel.recompute=block",
    "parallel.recompute=attention",
]


def key_of_step(*overrides, inputs=(BATCH, BATCH, COUNT)):
    network = built(*overrides)[1]._single
    return key_of(network, inputs, network.parameters_dict(), network.phase)


def key_of_times(constant, *others, phase="train"):
    network = Times(constant)
    for other in others:
        network.insert_child_to_cell(other.w.name + "_of", other)
    return key_of(network, (COUNT,), network.parameters_dict(), phase)


def test_a_network_that_is_built_again_has_the_same_key(device):
    assert key_of_step() == key_of_step()
    assert re.fullmatch("[0-9a-f]{64}", key_of_step())


def test_every_switch_gives_another_key(device):
    keys = {switch: key_of_step(switch) for switch in ("train.steps=10", *SWITCHES)}
    same = [(a, b) for a in keys for b in keys if a < b and keys[a] == keys[b]]
    assert same == []


def test_weights_have_no_part_in_the_key(device):
    assert key_of_step("train.seed=1") == key_of_step("train.seed=2")


def test_compiling_does_not_change_the_key(device):
    palm, step = built()
    network = SummedCrossEntropy(palm)
    before = key_of(network, (BATCH, BATCH), network.parameters_dict(), network.phase)
    step(*np.zeros((2, 4, 16), np.int32))
    assert key_of(network, (BATCH, BATCH), network.parameters_dict(), network.phase) == before


@pytest.mark.parametrize(
    "inputs",
    [
        (Tensor(np.zeros((2, 16), np.int32)), Tensor(np.zeros((2, 16), np.int32)), COUNT),
        (BATCH, BATCH, Tensor(np.float16(64))),
        (BATCH, BATCH, 64.0),
        (BATCH, BATCH, COUNT, COUNT),
    ],
    ids=["shape", "dtype", "number", "count"],
)
def test_other_inputs_give_another_key(device, inputs):
    assert key_of_step(inputs=inputs) != key_of_step()


def test_values_of_inputs_have_no_part_in_the_key(device):
    ones = Tensor(np.ones((4, 16), np.int32))
    assert key_of_step(inputs=(ones, ones, COUNT)) == key_of_step()


@pytest.mark.parametrize(
    "other",
    [
        2.0000001,
        np.float32(2),
        Tensor(np.float32(2)),
        [2.0],
        (2.0,),
        {"a": 2.0},
        {"b": 2.0},
        "2.0",
        True,
        None,
        ops.Add(),
    ],
    ids=repr,
)
def test_a_constant_has_part_in_the_key(device, other):
    assert key_of_times(other) != key_of_times(2.0)
    assert key_of_times(other) == key_of_times(other)


def test_the_last_element_of_a_large_constant_has_part_in_the_key(device):
    large = np.zeros(100_000, np.float32)
    changed = large.copy()
    changed[-1] = 1e-30
    assert key_of_times(Tensor(large)) != key_of_times(Tensor(changed))


def test_an_attribute_of_an_op_has_part_in_the_key(device):
    assert key_of_times(ops.Concat(0)) != key_of_times(ops.Concat(1))
    assert key_of_times(ops.MatMul()) != key_of_times(ops.MatMul(transpose_b=True))


def test_the_phase_has_part_in_the_key(device):
    assert key_of_times(2.0, phase="train") != key_of_times(2.0, phase="predict")


def test_a_seed_and_the_variables_of_mindspore_have_part_in_the_key(device, monkeypatch):
    before = key_of_times(2.0)
    monkeypatch.setenv("MS_DEV_SOMETHING", "1")
    assert key_of_times(2.0) != before
    monkeypatch.undo()
    assert key_of_times(2.0) == before
    monkeypatch.setattr(ms, "get_seed", lambda: 7)
    assert key_of_times(2.0) != before


def test_a_setting_of_mindspore_has_part_in_the_key(device):
    before = key_of_times(2.0)
    ms.set_context(max_call_depth=ms.get_context("max_call_depth") + 1)
    try:
        assert key_of_times(2.0) != before
    finally:
        ms.set_context(max_call_depth=ms.get_context("max_call_depth") - 1)
    assert key_of_times(2.0) == before


@pytest.mark.parametrize(
    ("owner", "name"),
    [(ms, "__version__"), (np, "__version__"), (key.sys, "version")],
    ids=["mindspore", "numpy", "python"],
)
def test_versions_have_part_in_the_key(device, monkeypatch, owner, name):
    before = key_of_times(2.0)
    monkeypatch.setattr(owner, name, "another")
    key._mindspore.cache_clear()
    try:
        assert key_of_times(2.0) != before
    finally:
        key._mindspore.cache_clear()


def test_the_content_of_every_source_has_part_in_the_key(device, tmp_path, monkeypatch):
    before = key_of_times(2.0)
    monkeypatch.setattr(key, "sources", lambda: "other")
    assert key_of_times(2.0) != before
    (tmp_path / "room").mkdir()
    for name in ("a.py", "room/b.py", "room/c.cc", "room/d.h"):
        (tmp_path / name).write_text("x = 1\n")
    digests = {sources.__wrapped__(tmp_path)}
    for name in ("a.py", "room/b.py", "room/c.cc", "room/d.h"):
        (tmp_path / name).write_text("x = 2\n")
        digests.add(sources.__wrapped__(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "e.py")
    digests.add(sources.__wrapped__(tmp_path))
    assert len(digests) == 6


def test_code_that_was_replaced_has_part_in_the_key(device, monkeypatch):
    """The sources are the same then: a planted error must not load the graph of the network without it."""
    monkeypatch.setenv(fused.SWITCH, "0")  # the step of MindSpore's ops has more code
    before = key_of_step()
    with monkeypatch.context() as patch:
        patch.setattr(loss_module.Loss, "construct", lambda self, inputs, targets, count: (count, count))
        assert key_of_step() != before
    with monkeypatch.context() as patch:  # a method that construct calls
        patch.setattr(step_module.Update, "factor", lambda self, norm, *scale: norm)
        assert key_of_step() != before
    with monkeypatch.context() as patch:  # a function that this method calls
        patch.setattr(step_module, "clip_factor", lambda norm, clip: norm)
        assert key_of_step() != before
    assert key_of_step() == before


def test_the_code_of_a_base_has_part_in_the_key(device, monkeypatch):
    class Twice(Times):
        def construct(self, x):
            return super().construct(super().construct(x))

    def key_of_twice():
        network = Twice(2.0)
        return key_of(network, (COUNT,), network.parameters_dict(), "train")

    before = key_of_twice()
    assert key_of_twice() == before
    monkeypatch.setattr(Times, "construct", lambda self, x: x * self.w)
    assert key_of_twice() != before


def test_what_the_walk_does_not_know_has_no_key(device):
    with pytest.raises(NoKeyError, match="generator"):
        key_of_times(i for i in range(3))
    with pytest.raises(NoKeyError, match="array of objects"):
        key_of_times(np.array([object()]))
    with pytest.raises(NoKeyError, match="library"):
        key_of_times(ops.Custom("./a.so:f", lambda x: x, lambda x: x, func_type="aot"))


def test_a_library_of_this_package_has_part_in_the_key(device, monkeypatch):
    """Its folder is named by all that it is made of."""
    monkeypatch.setenv(fused.SWITCH, "1")
    in_cpp = key_of_step()
    built_otherwise = fused.library().parent.with_name("training-0123456789ab") / "training.so"
    with monkeypatch.context() as patch:
        patch.setattr(fused, "library", lambda: built_otherwise)
        assert key_of_step() != in_cpp
    monkeypatch.setenv(fused.SWITCH, "0")
    assert key_of_step() != in_cpp


def test_two_weights_of_one_name_have_no_key(device):
    """MindSpore finds the weights of a loaded graph by name."""
    network = Times(2.0)
    weights = network.parameters_dict()
    network.w = Parameter(np.ones(2, np.float32), name="w")
    with pytest.raises(NoKeyError, match="whose name is not its own"):
        key_of(network, (COUNT,), weights, "train")

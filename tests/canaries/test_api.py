"""Canaries of another kind: what the package uses of MindSpore that is private, or announced to go, is still there."""

from __future__ import annotations

import importlib
import inspect

import pytest
from mindspore import nn, ops
from mindspore.parallel.auto_parallel import AutoParallel

PRIVATE = [
    "mindspore._c_expression.GraphExecutor_.compile",
    "mindspore._c_expression.JitExecutor_.compile",
    "mindspore.communication.management._get_rank_helper",
    "mindspore.communication.management._get_size_helper",
    "mindspore.parallel._auto_parallel_context._set_auto_parallel_context_func_map",
    "mindspore.parallel._auto_parallel_context.auto_parallel_context",
    "mindspore.parallel._utils._clear_auto_parallel_context",
    "mindspore.nn.utils.no_init_parameters",
    "mindspore.graph.register_custom_pass",
    "mindspore.graph.CustomPassType.FULL_GRAPH",
    "mindspore.ops.CustomOpBuilder",
    "mindspore.ops.auto_generate.SplitWithSize",
    "mindspore.ops.auto_generate.FlashAttentionScore",
    "mindspore.parallel.cluster.run.main",
]


def find(name: str) -> object:
    """The object of a dotted name."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", PRIVATE)
def test_ms_51_names_that_are_not_documented_are_there(name):
    try:
        find(name)
    except (AttributeError, ModuleNotFoundError) as error:
        raise AssertionError(f"MS-51: {name} is gone; find what has taken its place") from error


def test_ms_52_strategies_and_full_sharding_are_there():
    methods = {"dataset_strategy", "hsdp"} - set(vars(AutoParallel))
    wanted = {"shard_size", "threshold", "optimizer_level"} - set(inspect.signature(AutoParallel.hsdp).parameters)
    op = ops.MatMul().shard(((1, 2), (2, 1)))
    recompute = "recompute_slice_activation" in inspect.getsource(nn.Cell.recompute)
    assert not methods and not wanted and op.in_strategy == ((1, 2), (2, 1)) and recompute, (
        "MS-52: semi-auto parallel is not what it was; parallel/ must move"
    )

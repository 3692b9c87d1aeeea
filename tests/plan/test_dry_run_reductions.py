"""Dry runs of steps that reduce gradients once: how often each collective is, by the definition of full sharding."""

from __future__ import annotations

from collections import Counter

import pytest

from mindspore_palm.config import DataConfig, PaLMConfig, ParallelConfig, Settings, TrainConfig
from mindspore_palm.cost.workload import Workload
from mindspore_palm.dry_run.compile import dry_run

SIZES = dict(d_model=64, heads=4, head_dim=16, d_ff=256, vocab_size=256)
MICRO_BATCHES, KERNELS = 4, 3  # kernels of a block: q_wi, kv, o_wo
HOW = [
    pytest.param("per_step", "block", id="per step"),
    pytest.param("pods_per_step", "block", id="over pods"),
    pytest.param("pods_per_step", "none", id="over pods, gathered once", marks=pytest.mark.slow),
    pytest.param("per_step", "attention", id="per step, attention", marks=pytest.mark.slow),
]


def settings_of(layers=2, micro_batches=MICRO_BATCHES, **parallel):
    return Settings(
        model=PaLMConfig(layers=layers, **SIZES),
        data=DataConfig(seq_len=16),
        train=TrainConfig(batch_size=4 * micro_batches, micro_batch=4),
        parallel=ParallelConfig(**{"pods": 2, "data": 2, **parallel}),
    )


def counts(run):
    """How often each operation is along each axis, for tensors of more than one dimension that are no token ids."""
    found: Counter[tuple[str, str]] = Counter()
    for kind, count in run.ledger.counts.items():
        if len(kind.given) > 1 and kind.dtype != "Int32":
            found[kind.op, kind.axes] += count
    return found


@pytest.fixture(scope="module")
def compiled():
    runs = {}

    def get(reduce, recompute):
        if (reduce, recompute) not in runs:
            settings = settings_of(reduce_gradients=reduce, recompute=recompute)
            runs[reduce, recompute] = settings, dry_run(settings)
        return runs[reduce, recompute]

    return get


@pytest.mark.parametrize(("reduce", "recompute"), HOW)
def test_each_gradient_crosses_pods_once_a_step(compiled, reduce, recompute):
    _, run = compiled(reduce, recompute)
    assert counts(run)["all-reduce", "pod"] == 2 * KERNELS + 1
    for kind, count in run.ledger.counts.items():
        if kind.axes == "pod":  # of the shard that is left after the reduce-scatter inside the pod
            assert kind.weight and kind.dtype == "Float32" and kind.given in SHARDS and count <= 2


SHARDS = ((32, 128 * 5 - 64), (32, 32), (160, 64), (128, 64))  # half of q_wi, kv, o_wo and the table


@pytest.mark.parametrize(("reduce", "recompute"), HOW)
def test_inside_a_pod_collectives_are_once_a_step_or_once_a_micro_batch(compiled, reduce, recompute):
    """Of the table, MindSpore scatters both gradients (lookup and logits) if weights stay gathered."""
    _, run = compiled(reduce, recompute)
    times = 1 if reduce == "per_step" else MICRO_BATCHES
    twice = reduce == "pods_per_step" and recompute != "block"
    assert counts(run)["reduce-scatter", "data"] == times * (2 * KERNELS + 1 + twice)
    gathered = 2 * MICRO_BATCHES if reduce == "pods_per_step" and recompute == "block" else 1
    assert counts(run)["all-gather", "data"] == gathered * (2 * KERNELS + 1)


@pytest.mark.parametrize(("reduce", "recompute"), HOW)
def test_the_cost_model_counts_what_is_compiled(compiled, reduce, recompute):
    settings, run = compiled(reduce, recompute)
    work, of_o_wo = Workload.of(settings), Counter()
    for kind, count in run.ledger.counts.items():
        if (320, 64) in (kind.given, kind.result):  # heads * head_dim + d_ff = 320 rows
            of_o_wo[kind.op] += count
    assert of_o_wo["all-gather"] == 2 * work.weight_gathers
    assert of_o_wo["reduce-scatter"] == 2 * work.gradient_scatters
    assert work.gradient_reductions == 1


@pytest.mark.slow
@pytest.mark.parametrize(("reduce", "recompute"), [("per_step", "block"), ("pods_per_step", "block")])
def test_deeper_networks_and_more_micro_batches_are_extrapolated(reduce, recompute):
    settings = settings_of(5, 8, reduce_gradients=reduce, recompute=recompute)
    shallow, deep = dry_run(settings, all_layers=False), dry_run(settings)
    assert shallow.ledger == deep.ledger
    assert sorted(map(str, shallow.shards)) == sorted(map(str, deep.shards))


def test_in_the_compute_dtype_gradients_of_kernels_have_half_the_bytes():
    """Norm scales and the table are float32 in the forward pass, and so are their gradients."""
    settings = settings_of(micro_batches=1, shard_weights="off", reduce_dtype="compute_dtype")
    reduced = {k.weight: k.dtype for k in dry_run(settings).ledger.counts if k.weight and k.op == "all-reduce"}
    kernels = dict.fromkeys(("q_wi", "kv", "o_wo"), "BFloat16")
    assert reduced == {**kernels, "norm.scale": "Float32", "embedding": "Float32"}

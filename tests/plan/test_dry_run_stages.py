"""Dry runs of pipelines: what the first and the last stage hold, send and reduce, by the definition of a pipeline."""

from __future__ import annotations

from collections import Counter

import pytest

from mindspore_palm.config import DataConfig, PaLMConfig, ParallelConfig, Settings, TrainConfig
from mindspore_palm.dry_run.compile import dry_run
from mindspore_palm.dry_run.report import describe_dry_run

SIZES = dict(d_model=64, heads=4, head_dim=16, d_ff=256, vocab_size=256)
LENGTH, MICRO_BATCH = 16, 2


def settings_of(layers, micro_batches, **parallel):
    return Settings(
        model=PaLMConfig(layers=layers, **SIZES),
        data=DataConfig(seq_len=LENGTH),
        train=TrainConfig(batch_size=MICRO_BATCH * micro_batches, micro_batch=MICRO_BATCH),
        parallel=ParallelConfig(stages=2, model=2, **parallel),
    )


def counts(run, op):
    return Counter({(k.part, k.weight or "activations"): n for k, n in run.ledger.counts.items() if k.op == op})


@pytest.fixture(scope="module")
def ends():
    """The first and the last of two stages of two model ranks, with 3 and 2 layers and 4 micro-batches."""
    settings = settings_of(5, 4, stage_layers=[3, 2])
    return settings, [dry_run(settings, rank=rank) for rank in (0, 3)]


def test_a_stage_sends_activations_once_a_micro_batch_and_the_table_once_a_step(ends):
    _, (first, last) = ends
    assert counts(first, "send") == {("forward", "activations"): 4, ("forward", "embedding"): 1}
    assert counts(first, "receive") == {("backward", "activations"): 4, ("backward", "embedding"): 1}
    assert counts(last, "receive") == {("forward", "activations"): 4, ("forward", "embedding"): 1}
    assert counts(last, "send") == {("backward", "activations"): 4, ("backward", "embedding"): 1}
    (sent,) = (k for k in first.ledger.counts if k.op == "send" and not k.weight)
    assert sent.given == (MICRO_BATCH * LENGTH, 64) and sent.dtype == "BFloat16" and sent.axes == "stage"


def test_layers_reduce_activations_by_micro_batch_and_gradients_once(ends):
    """Section 4 of the paper: one all-reduce of a block in each direction; k and v of all heads are replicated."""
    _, (first, last) = ends
    for run, layers in ((first, 3), (last, 2)):
        reduced = [(k, n) for k, n in run.ledger.counts.items() if k.op == "all-reduce" and k.axes == "model"]
        blocks = Counter(k.part for k, n in reduced for _ in range(n) if k.given == (MICRO_BATCH * LENGTH, 64))
        assert blocks == {"forward": 4 * layers, "backward": 4 * layers}
        assert {(k.weight, n) for k, n in reduced if k.weight} == {("kv", layers), ("norm.scale", layers)}


def test_a_stage_holds_its_own_weights_and_their_moments(ends):
    settings, (first, last) = ends
    names = [{s.name for s in run.shards} for run in (first, last)]
    matrices = ("q_wi", "kv", "o_wo", "norm.scale")
    expected = [{f"blocks.{i}.{name}" for i in layers for name in matrices} for layers in (range(3), range(3, 5))]
    expected[0].add("embedding")
    for found, own in zip(names, expected, strict=True):
        assert found == own | {f"{moment}.{name}" for moment in ("m", "v") for name in own}
    text = describe_dry_run(first, settings, "GPU", 0)
    assert "2 stages x 1 pods x 1 data x 2 model, rank 0 of 4" in text and "a graph of its own" in text


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(
    "more",
    [{}, {"recompute": "block", "data": 2}, {"interleave": 2}, {"interleave": 2, "schedule": "zero_bubble_v"}],
    ids=str,
)
def test_a_pipeline_that_is_extrapolated_is_the_one_that_is_compiled(rank, more):
    settings = settings_of(12, 5, stage_layers=[3] * 4 if "interleave" in more else [6, 6], **more)
    few, all_of_it = (dry_run(settings, rank=rank, all_layers=whole) for whole in (False, True))
    extrapolated = (4, 8) if "interleave" in more else (2, 4)
    assert few.compiled == ((12,) if "schedule" in more else extrapolated) and all_of_it.compiled == (12,)
    assert few.ledger.counts == all_of_it.ledger.counts
    assert Counter(few.shards) == Counter(all_of_it.shards)

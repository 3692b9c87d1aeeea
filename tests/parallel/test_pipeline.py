"""PaLM's parts in MindSpore's own pipeline, on workers: two stages of two model ranks train as one process does."""

from __future__ import annotations

import numpy as np
import pytest
from parallel.compare import TOLERANCES, relative
from parallel.msrun import HERE, run_python, run_workers
from parallel.pipeline_worker import MODEL, SIZES, STAGES

WORKER = "pipeline_worker.py"
WORKERS = STAGES * MODEL


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Losses and weights of one process, then of each worker."""
    out = tmp_path_factory.mktemp("pipeline")
    run_python(HERE / WORKER, out, 1)
    run_workers(WORKER, WORKERS, out, 1)
    return dict(np.load(out / "rank_one.npz")), [dict(np.load(out / f"rank_{r}.npz")) for r in range(WORKERS)]


def test_losses_are_those_of_one_process(results):
    one, workers = results
    for rank in range(WORKERS - MODEL, WORKERS):  # those of the last stage
        np.testing.assert_allclose(workers[rank]["losses"], one["losses"], rtol=TOLERANCES["loss"])
    assert one["losses"][-1] < 0.7 * one["losses"][0]


def test_the_tied_embedding_gets_the_gradients_of_both_stages(results):
    """Its owner is the first stage; each model rank has half of the rows."""
    one, workers = results
    table = np.concatenate([workers[rank]["embedding"] for rank in range(MODEL)])
    assert relative(table, one["embedding"]) < TOLERANCES["weights"]


@pytest.mark.parametrize(("weight", "sharded"), [("norm.scale", None), ("kv", None), ("q_wi", 1), ("o_wo", 0)])
def test_weights_of_a_stage_are_those_of_one_process(results, weight, sharded):
    one, workers = results
    for i in range(SIZES["layers"]):
        name, first = f"blocks.{i}.{weight}", i * STAGES // SIZES["layers"] * MODEL
        shards = [workers[rank][name] for rank in range(first, first + MODEL)]
        whole = shards[0] if sharded is None else np.concatenate(shards, sharded)
        assert relative(whole, one[name]) < TOLERANCES["weights"], name

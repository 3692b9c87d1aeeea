"""The search over pipelines: what it tries, what fits, and that nothing better is left out."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from mindspore_palm.cost.workload import Workload
from mindspore_palm.errors import UserError
from mindspore_palm.plan.links import bandwidth, without_stages
from mindspore_palm.plan.machines import load_machine
from mindspore_palm.plan.pipeline import Pipeline, memory_by_stage
from mindspore_palm.plan.search import USABLE, candidate, problem, search
from mindspore_palm.plan.search_pipelines import BEST, bounds, search_all, search_pipelines
from mindspore_palm.plan.step_time import Overlap, step_time
from mindspore_palm.settings import load_settings

YAML = Path(__file__).resolve().parents[2] / "yaml"
A100, TPU_V4, ASCEND = (load_machine(name) for name in ("a100", "tpu-v4", "ascend-910b"))


def settings_of(name, *overrides):
    return load_settings(YAML / f"{name}.yaml", overrides)[0]


@pytest.fixture(scope="module")
def found():
    return search_pipelines(settings_of("palm_62b"), ASCEND, 512, problem)


def test_pipelines_use_all_devices_and_fit_on_every_stage(found):
    candidates, fitting = found
    assert fitting > 100 and len(candidates) >= BEST
    for one in candidates:
        parallel, pipeline = one.settings.parallel, one.pipeline
        assert parallel.devices * pipeline.stages == 512
        work = pipeline.apply(Workload.of(one.settings, "Ascend"))
        if pipeline.stages > 1:
            assert len(one.by_stage) == pipeline.stages
            assert one.bytes == max(sum(kinds.values()) for kinds in one.by_stage)
            assert 2 * work.micro_batches >= pipeline.stages
        assert one.bytes <= USABLE * ASCEND.memory
        assert one.time == step_time(work, ASCEND)


def test_stages_interleaving_micro_batches_and_sharded_activations_are_all_tried():
    settings = settings_of("palm_62b")
    tried = list(bounds(settings, ASCEND, 512, problem, Overlap()))
    pipelines = [bound.pipeline for bound in tried]
    assert {p.stages for p in pipelines} >= {1, 2, 4, 8, 16, 32}
    assert {p.interleave for p in pipelines if p.stages == 4} == {1, 2, 4, 16}
    assert {p.sequence_parallel for p in pipelines} == {p.gather_once for p in pipelines} == {False, True}
    sizes = {b.settings.train.micro_batch for b in tried if b.pipeline.stages == 4 and b.settings.parallel.data == 32}
    assert sizes == {32, 64, 128, 256, 512}


def test_no_pipeline_that_is_left_out_is_faster():
    """8 devices: every shape by hand, without the bound that spares playing most of them."""
    settings = settings_of("palm_8b", "train.batch_size=32", "model.layers=8", "parallel.data=1", "parallel.model=1")
    candidates, _ = search_pipelines(settings, A100, 8, problem)
    best = candidates[0].time.seconds
    tried = 0
    for stages, model, interleave, once, sharded in product((2, 4, 8), (1, 2, 4), (1, 2), (True, False), (True, False)):
        data = 8 // stages // model
        if data < 1 or stages * interleave > 8 or (sharded and model == 1):
            continue
        for recompute, micro_batch in product(("none", "attention", "block"), (data, 2 * data, 4 * data)):
            one = settings.model_copy(
                update={
                    "model": settings.model.model_copy(update={"vocab_multiple": data * model}),
                    "train": settings.train.model_copy(update={"micro_batch": micro_batch}),
                    "parallel": settings.parallel.model_copy(
                        update={"data": data, "model": model, "recompute": recompute}
                    ),
                }
            )
            work = Pipeline(stages, interleave, "1f1b", once, sharded).apply(Workload.of(one))
            memory = memory_by_stage(work, A100)
            if max(sum(kinds.values()) for kinds in memory) <= USABLE * A100.memory:
                tried += 1
                assert step_time(work, A100).seconds >= best * (1 - 1e-9)
    assert tried > 20


def test_a_batch_with_fewer_sequences_than_devices_needs_a_pipeline():
    """8 sequences and 32 heads are for 256 devices at most; two stages of 256 use 512."""
    settings = settings_of("palm_62b", "train.batch_size=8", "train.micro_batch=0", "parallel.data=8")
    with pytest.raises(UserError, match="no mesh of 512 devices fits"):
        search(settings, ASCEND, 512)
    candidates, fitting = search_all(settings, ASCEND, 512)
    assert candidates and fitting >= len(candidates)
    assert min(candidate.pipeline.stages for candidate in candidates) >= 2
    rates = [candidate.time.mfu for candidate in candidates]
    assert rates == sorted(rates, reverse=True)


def test_where_nothing_fits_the_reason_is_the_one_without_pipelines():
    with pytest.raises(UserError, match="on 8 devices, the smallest of"):
        search_all(settings_of("palm_62b"), ASCEND, 8)


def test_without_pipelines_palms_own_mesh_comes_first_and_with_them_the_step_is_within_a_tenth():
    candidates, _ = search_all(settings_of("palm_540b"), TPU_V4, 6144)
    plain = [c for c in candidates if c.pipeline == Pipeline()]
    mesh = plain[0].settings.parallel
    assert (mesh.pods, mesh.data, mesh.model) == (2, 256, 12)
    assert plain[0].time.seconds / candidates[0].time.seconds < 1.1


def test_the_stages_take_a_dimension_of_a_torus_from_the_data_axis():
    layout = Workload.of(settings_of("palm_540b", "parallel.pods=1", "parallel.data=16")).layout
    assert bandwidth(TPU_V4, layout, "data") == 4 * 50e9  # two dimensions, two links each
    assert bandwidth(without_stages(TPU_V4, 16), layout, "data") == 2 * 50e9
    assert without_stages(A100, 16) == A100


def test_a_run_s_own_pipeline_is_planned_by_stage(monkeypatch):
    """The settings have no stages yet; ``Pipeline.of`` is the one place that will read them."""
    settings = settings_of("palm_62b", "train.batch_size=512", "train.micro_batch=8", "parallel.data=8")
    assert candidate(settings, A100).by_stage == ()
    monkeypatch.setattr(Pipeline, "of", classmethod(lambda cls, settings: cls(8, 2)))
    planned = candidate(settings, A100)
    assert len(planned.by_stage) == 8 and planned.pipeline == Pipeline(8, 2)
    assert planned.time.parts["pipeline"] > 0
    assert planned.bytes == max(sum(kinds.values()) for kinds in planned.by_stage)

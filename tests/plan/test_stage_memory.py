"""Memory by stage of a pipeline, in bytes: published formulas, and which stage has what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan import megatron

from mindspore_palm.cost.activations import Activations
from mindspore_palm.parallel.axes import Layout
from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.plan.machines import load_machine
from mindspore_palm.plan.pipeline import memory_by_stage
from mindspore_palm.plan.step_time import step_time

A100 = load_machine("a100")
LENGTH = 2048


def gpt3(stages=8, chunks=1, micro_batches=64, model=8, **changes):
    """175B of arXiv 2205.05198, table 3: 96 heads, 96 layers, 8 model ranks, 8 stages, 64 micro-batches."""
    base = megatron.workload("145.6B")
    layout = Layout(Mesh(1, 1, model), shard_weights="off", recompute="none", compute_dtype="bfloat16")
    config = base.model.model_copy(update={"layers": 96})
    work = replace(base, model=config, layout=layout, batch=micro_batches, micro_batch=1, pipeline=stages)
    return replace(work, chunks=chunks, **changes)


def megatron_layer(work, sequence_parallel):
    """arXiv 2205.05198, equations 2 and 4, less the masks and outputs of dropout, of which PaLM has none.

    s*b*h*(10 + 24/t + 5*a*s/(h*t)), and all of it over t with sequence parallelism: two masks of a byte per element are
    in the 10, and of the 5 bytes per score, two are of softmax.
    """
    h, a, t = work.model.d_model, work.model.heads, work.layout.mesh.model
    width = (10 - 2) / (t if sequence_parallel else 1)
    return LENGTH * h * (width + 24 / t + 2 * a * LENGTH / (h * t))


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_a_layer_of_megatron_saves_the_published_bytes(sequence_parallel):
    work = gpt3()
    layer = Activations(
        work.model, work.layout, LENGTH, LENGTH, "none", fused_attention=False, sequence_parallel=sequence_parallel
    )
    assert layer.saved() == pytest.approx(megatron_layer(work, sequence_parallel))
    selective = replace(layer, recompute="attention").saved()
    assert layer.saved() - selective == pytest.approx(2 * 96 * LENGTH * LENGTH / 8)  # scores


@pytest.mark.parametrize(("chunks", "factor"), [(1, 1), (3, 1 + 7 / (8 * 3))])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_the_first_stage_holds_as_much_as_all_layers_of_one_micro_batch(chunks, factor, sequence_parallel):
    """arXiv 2205.05198, section 4.2.3: L layers however many stages, and 1 + (p-1)/(p*m) times that if interleaved."""
    work = gpt3(chunks=chunks, sequence_parallel=sequence_parallel)
    first = memory_by_stage(work, A100)[0]
    assert first["activations"] == pytest.approx(96 * factor * megatron_layer(work, sequence_parallel), rel=1e-6)


def test_the_first_stage_holds_the_most_activations_and_the_last_has_the_logits():
    memory = memory_by_stage(gpt3(stages=4), A100)
    activations = [stage["activations"] for stage in memory]
    assert [size / activations[-1] for size in activations] == pytest.approx([4, 3, 2, 1])
    logits = 4 * LENGTH * 51200 / 8
    assert memory[-1]["temporaries"] >= 4 * logits > max(stage.get("temporaries", 0) for stage in memory[:-1])


def test_weights_are_those_of_the_stage_s_layers_and_the_embedding_is_on_both_ends():
    memory = memory_by_stage(gpt3(stages=4), A100)
    block = 12 * 12288**2 / 8 * 24  # qkv 3, out 1, mlp 8
    table = 51200 * 12288 / 8
    weights = [stage["weights"] for stage in memory]
    assert weights == pytest.approx([4 * (block + table), 4 * block, 4 * block, 4 * (block + table)], rel=1e-3)
    for stage in memory:  # AdamW
        assert stage["optimizer state"] == 2 * stage["weights"] and stage["gradients"] == stage["weights"]


def test_layers_that_do_not_divide_are_fewer_on_the_last_stage():
    work = gpt3(stages=5, micro_batches=20)
    assert work.stage_layers == (20, 19, 19, 19, 19)
    weights = [stage["weights"] for stage in memory_by_stage(work, A100)]
    assert weights[1] / 19 == pytest.approx((weights[0] - weights[-1]), rel=1e-6)


def test_zb_v_has_both_ends_on_the_first_device():
    memory = memory_by_stage(gpt3(stages=4, chunks=2, schedule="zb-v"), A100)
    assert memory[0]["weights"] > memory[1]["weights"] == memory[-1]["weights"]
    assert memory[0]["temporaries"] > memory[-1].get("temporaries", 0)
    assert len({stage["activations"] for stage in memory}) == 1  # arXiv 2405.15362: balanced


def test_dualpipe_has_two_stages_per_device_and_holds_one_micro_batch_more():
    """arXiv 2412.19437, table 2: parameters twice, activations of p + 1 micro-batches of a stage."""
    plain, twice = (memory_by_stage(gpt3(stages=4, schedule=name), A100) for name in ("1f1b", "dualpipe"))
    assert twice[1]["weights"] == pytest.approx(2 * plain[1]["weights"], rel=1e-6)
    assert [stage["activations"] for stage in twice] == pytest.approx([5 / 4 * plain[0]["activations"]] * 4)


def test_gpipe_holds_every_micro_batch():
    few, many = (memory_by_stage(gpt3(micro_batches=n, schedule="gpipe"), A100)[0] for n in (64, 128))
    assert many["activations"] == pytest.approx(2 * few["activations"])
    assert few["activations"] == pytest.approx(64 / 8 * memory_by_stage(gpt3(), A100)[0]["activations"])


def test_stages_that_keep_gathered_weights_gather_once_and_take_more_memory():
    layout = replace(gpt3().layout, mesh=Mesh(1, 8, 8), shard_weights="pod")
    once = replace(gpt3(), layout=layout, batch=512, micro_batch=8)
    again = replace(once, gather_once=False)
    kept, gathered = memory_by_stage(once, A100)[1], memory_by_stage(again, A100)[1]
    parameters = 12 * 12288**2 / 8 * 12
    assert kept["gathered weights"] == pytest.approx(2 * parameters, rel=1e-3)
    assert kept["gradients"] == pytest.approx(8 * gathered["gradients"], rel=1e-2)
    seconds = [step_time(work, A100).parts["data axis"] for work in (once, again)]
    assert seconds[1] == pytest.approx(64 * seconds[0], rel=1e-3)  # 64 micro-batches; norms are not sharded

"""The cost model: calibrated on two published runs, compared with others, and its parts derived by hand."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
from plan import megatron

from mindspore_palm.config import OptimizerConfig, PaLMConfig
from mindspore_palm.cost.workload import Workload
from mindspore_palm.errors import UserError
from mindspore_palm.parallel.axes import DATA_AXES, Layout
from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.plan.links import all_gather, all_reduce, bandwidth
from mindspore_palm.plan.machines import load_machine
from mindspore_palm.plan.published import ADAM, MT_NLG, PALM, mt_nlg_seconds, palm_seconds, predictions
from mindspore_palm.plan.step_time import Overlap, step_time
from mindspore_palm.settings import load_settings

YAML = Path(__file__).resolve().parents[2] / "yaml"
TPU_V4, A100 = load_machine("tpu-v4"), load_machine("a100")


def test_tpu_v4_is_calibrated_on_reading_prompts():
    # Pope and others 2022, table 2: 512 prompts of 2,048 tokens on 64 chips, weights gathered for use, in 85.2 s
    work = Workload(PaLMConfig.from_preset("palm_540b"), Layout(Mesh(1, 64, 1)), 2048, 512, 512)
    cube = TPU_V4.model_copy(update={"torus": [4, 4, 4]})
    matmuls = sum(cube.matmul_seconds(p.m, p.k, p.n, p.count) for p in work.block_matmuls())
    traffic = cube.stream_seconds(work.block_traffic(fused_attention=False))
    gathered = all_gather(cube, work.layout, ["data"], 2 * work.model.parameter_count())
    assert 118 * (matmuls + traffic) + sum(gathered.values()) == pytest.approx(85.2, rel=0.005)


def test_a100_is_calibrated_on_a_run_of_megatron():
    assert _megatron("529.6B") == pytest.approx(163, rel=0.01)


@pytest.mark.parametrize("name", megatron.TABLE)
def test_the_other_runs_of_megatron_follow(name):
    assert _megatron(name) == pytest.approx(megatron.TABLE[name][-1], rel=0.09)


def _megatron(name):
    """Predicted TFLOP/s per device."""
    return megatron.flops(name) / step_time(megatron.workload(name), A100).seconds / megatron.TABLE[name][5] / 1e12


def test_published_times():
    assert palm_seconds(2) == pytest.approx(17.60, rel=0.15)
    assert 2 * palm_seconds(1) / palm_seconds(2) == pytest.approx(1.95, rel=0.03)
    assert mt_nlg_seconds() == pytest.approx(60.1, rel=0.20)
    two_pods, *_ = predictions()
    assert f"{two_pods.published:.2f}" == "17.60" and two_pods.ours == palm_seconds(2)


def test_mt_nlg_could_not_interleave_and_with_five_micro_batches_more_would_take_47_seconds():
    """35 stages of three chunks of one layer each, as Megatron's: 240 micro-batches are no multiple of 35."""
    layout = Layout(Mesh(1, 8, 8), shard_weights="off", recompute="block", compute_dtype="bfloat16")
    three = Workload(MT_NLG, layout, 2048, 1920, 8, pipeline=35, chunks=3, optimizer=ADAM)
    with pytest.raises(UserError, match="240 micro-batches do not divide by 35 devices"):
        step_time(three, A100)
    more = step_time(replace(three, batch=1960), A100).seconds  # 245 micro-batches
    assert more == pytest.approx(47, abs=0.5)
    assert 240 / 245 * more < 0.93 * mt_nlg_seconds()


def test_the_bubble_of_a_step_is_its_schedule_s():
    """arXiv 2104.04473: (stages - 1) / chunks micro-batches of equal stages, with sends as part of the stages."""
    layout = Layout(Mesh(1, 1, 8), shard_weights="off", recompute="block")
    for chunks in (1, 2):
        work = Workload(MT_NLG, layout, 2048, 16, 1, pipeline=4, chunks=chunks, optimizer=ADAM)
        model = work.model.model_copy(update={"layers": 96, "vocab_size": 8})
        parts = step_time(replace(work, model=model), A100).parts
        busy = parts["matmuls"] + parts["memory traffic"] + parts["model axis"]
        send = 2 * work.activation_bytes / 25e9 / (8 if chunks > 1 else 1)  # forward and back, in shards if interleaved
        bubble = 3 / chunks * (busy / 16 + send)
        sends = 16 * (2 * chunks - 1) / 2 * send  # of the last device, which sends back from its last stage only
        assert parts["pipeline"] == pytest.approx(bubble + sends, rel=0.15)
        assert parts["pipeline"] >= bubble


def test_what_sends_hide_behind_is_the_pipeline():
    work = replace(megatron.workload("145.6B"), batch=24 * 80, chunks=1)
    seen, hidden = step_time(work, A100).parts, step_time(work, A100, Overlap(sends=True)).parts
    send = work.activation_bytes / 25e9
    # the busiest device, which has the logits, sends each gradient back; hidden, only the way in and out is left
    assert seen["pipeline"] - hidden["pipeline"] == pytest.approx(work.micro_batches * send, rel=0.1)
    assert {name: seen[name] for name in seen if name != "pipeline"} == {n: hidden[n] for n in seen if n != "pipeline"}


def test_collectives_of_the_model_axis_hide_behind_matmuls():
    work = megatron.workload("18.4B")
    seen, half, hidden = (step_time(work, A100, Overlap(model=share)).parts["model axis"] for share in (0.0, 0.5, 1.0))
    ends = 2 * sum(all_reduce(A100, work.layout, ["model"], 2 * work.activation_bytes).values())
    assert hidden == pytest.approx(work.micro_batches * ends)  # float32, of the embedding and of the logits
    assert half == pytest.approx((seen + hidden) / 2)


def test_without_gradient_accumulation_the_data_axis_hides_behind_one_micro_batch():
    work = replace(megatron.workload("145.6B"), layout=replace(megatron.workload("145.6B").layout, mesh=Mesh(1, 96, 8)))
    work = replace(work, batch=96 * 24, micro_batch=96, chunks=1)
    parts = step_time(work, A100).parts
    hidden = step_time(work, A100, Overlap(data=1.0)).parts["data axis"]
    assert hidden == pytest.approx(max(0.0, parts["data axis"] - parts["matmuls"] / 24))


def test_sequence_parallelism_moves_less_memory_and_the_same_bytes_over_the_model_axis():
    """arXiv 2205.05198, section 4.2.2: norms and residuals work on 1/8 of the tokens."""
    work = megatron.workload("18.4B")
    plain, sharded = (step_time(replace(work, sequence_parallel=on), A100).parts for on in (False, True))
    norms = 12 * work.model.d_model * 2 * work.tokens  # two norms and two adds, each of three tensors, in 16 bits
    saved = 4 * work.micro_batches * work.layers * norms * 7 / 8  # forward, recomputed, and twice backward
    assert plain["memory traffic"] - sharded["memory traffic"] == pytest.approx(saved / (2039e9 * 0.8))
    assert plain["model axis"] == sharded["model axis"]


def test_the_configuration_gives_palms_step():
    settings, _ = load_settings(YAML / "palm_540b.yaml")
    time = step_time(Workload.of(settings), TPU_V4)
    assert time.seconds == pytest.approx(palm_seconds(2))
    assert time.mfu == pytest.approx(2048 * 2048 * 3.27776e12 / time.seconds / (6144 * 275e12), rel=1e-4)
    assert time.hfu / time.mfu == pytest.approx(4.10017 / 3.27776, rel=1e-4)


def test_bytes_between_pods_are_the_papers():
    # 1.3 GB each way per pair of hosts of four chips: a bfloat16 gradient of 1/3072 of the weights per chip
    settings, _ = load_settings(YAML / "palm_540b.yaml")
    seconds = step_time(Workload.of(settings), TPU_V4).parts["between pods"]
    assert seconds * 6.59 / 1.024**3 == pytest.approx(1.31, rel=0.04)  # kv is replicated over 12 model ranks: 3 % more


def test_matmuls_add_up_to_the_flops_of_the_model():
    layout = Layout(Mesh(1, 4, 4))
    work = Workload(PALM, layout, 2048, 8, 8)
    forward = 118 * sum(p.flops for p in work.block_matmuls()) + work.logits_matmul().flops
    kv_on_every_rank = 118 * 3 * 2 * work.tokens * 18432 * 512
    padding = 2 * work.tokens * 18432 * (258048 - 256000) // 4
    ours = 16 * (forward - kv_on_every_rank / 4 - padding) * 3
    assert ours == pytest.approx(8 * 2048 * PALM.flops_per_token(2048), rel=1e-9)


def test_a_matmul_takes_full_tiles_in_full_waves():
    machine = A100.model_copy(update={"tile": [128, 256, 32], "tiles_at_once": 100, "memory_gb_s": 1e9})
    one_wave = 2 * 100 * 128 * 256 * 4096 / (312e12 * 0.7)
    assert machine.matmul_seconds(1280, 4096, 2560) == pytest.approx(one_wave)  # 10 x 10 tiles
    assert machine.matmul_seconds(1281, 4096, 2560) == pytest.approx(2 * one_wave)
    assert machine.matmul_seconds(128, 4096, 256, count=100) == pytest.approx(one_wave)


def test_a_thin_matmul_is_limited_by_memory():
    seconds = A100.matmul_seconds(1, 4096, 4096)
    assert seconds == pytest.approx(2 * (4096 + 4096**2 + 4096) / (2039e9 * 0.8))


def test_links_of_a_torus():
    palm = Layout(Mesh(2, 256, 12))
    assert bandwidth(TPU_V4, palm, "model") == 2 * 50e9
    assert bandwidth(TPU_V4, palm, "data") == 4 * 50e9
    assert bandwidth(TPU_V4, palm, "pod") == pytest.approx(6.59e9 / 4)
    assert bandwidth(TPU_V4, Layout(Mesh(1, 64, 1)), "data") == 6 * 50e9


def test_links_of_servers():
    assert bandwidth(A100, Layout(Mesh(1, 8, 8)), "model") == 300e9  # inside
    assert bandwidth(A100, Layout(Mesh(1, 8, 8)), "data") == 25e9  # one member per server
    assert bandwidth(A100, Layout(Mesh(1, 32, 2)), "data") == 100e9  # four members, each with its share
    assert bandwidth(A100, Layout(Mesh(1, 64, 1)), "data") == 200e9


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather():
    layout = Layout(Mesh(1, 4, 8))
    assert all_reduce(A100, layout, ["model"], 8e9) == {"model": pytest.approx(2 * 7e9 / 300e9)}
    assert all_gather(A100, layout, ["pod"], 8e9) == {"pod": 0}


def test_over_two_axes_the_slow_one_carries_shards():
    # first the other half of 1/256 between pods, then the other 255/256 inside
    seconds = all_gather(TPU_V4, Layout(Mesh(2, 256, 12)), ["pod", "data"], 512e9)
    assert seconds == {"data": pytest.approx(510e9 / 200e9), "pod": pytest.approx(1e9 / (6.59e9 / 4))}


def test_overlap_hides_only_the_data_axis():
    settings, _ = load_settings(YAML / "palm_540b.yaml")
    work = Workload.of(settings)
    none, half, full = (step_time(work, TPU_V4, overlap) for overlap in (0.0, 0.5, 1.0))
    assert full.parts["data axis"] == 0
    assert half.seconds == pytest.approx((none.seconds + full.seconds) / 2)


def test_micro_batches_gather_weights_again():
    work = Workload(PALM, Layout(Mesh(1, 256, 12), recompute="block"), 2048, 1024, 1024)
    four = step_time(replace(work, micro_batch=256), TPU_V4)
    assert four.parts["data axis"] == pytest.approx(4 * step_time(work, TPU_V4).parts["data axis"])


def test_gradients_that_are_reduced_once_a_step():
    """PaLM's mesh with four micro-batches: a quarter between pods; inside a pod, that of a single micro-batch."""

    def parts(micro_batch, reduced, recompute="block"):
        layout = Layout(Mesh(2, 256, 12), recompute=recompute, reduce_gradients=reduced)
        return step_time(Workload(PALM, layout, 2048, 2048, micro_batch), TPU_V4).parts

    four, one = parts(512, "per_micro_batch"), parts(2048, "per_micro_batch")
    over_pods, once = parts(512, "pods_per_step"), parts(512, "per_step")
    assert four["between pods"] == pytest.approx(4 * over_pods["between pods"])
    assert over_pods["data axis"] == pytest.approx(four["data axis"], rel=1e-4)  # norm scales are not sharded
    assert once["between pods"] == pytest.approx(one["between pods"])
    # one gather and one reduce-scatter where there were eight and four; both are of 2 bytes per parameter on TPU v4
    assert once["data axis"] == pytest.approx(four["data axis"] * 2 / 12, rel=0.02)
    kept = parts(512, "pods_per_step", "none")  # weights stay gathered: 1 and 4
    assert kept["data axis"] == pytest.approx(four["data axis"] * 5 / 12, rel=0.02)


def test_gradients_in_16_bits_are_half_of_those_in_float32():
    work = Workload(PALM, Layout(Mesh(1, 8, 8), shard_weights="off"), 2048, 64, 64)
    halved = replace(work, layout=replace(work.layout, reduce_dtype="compute_dtype"))
    parts = [step_time(one, A100).parts["data axis"] for one in (work, halved)]
    table = work.embedding.shard_shape[0] * 18432 / sum(c * prod(w.shard_shape) for w, c in work.device_weights())
    assert parts[1] / parts[0] == pytest.approx((1 + table) / 2, rel=1e-3)


@pytest.mark.parametrize("sharding", ["pod", "all", "off"])
def test_gradients_cross_pods_sharded_however_weights_are(sharding):
    layout = Layout(Mesh(2, 256, 12), shard_weights=sharding, recompute="block")
    parts = step_time(Workload(PALM, layout, 2048, 2048, 2048), TPU_V4).parts
    # once each way per step, 1/3072 of all weights in bfloat16; with "all", weights cross twice more; with "off", the
    # all-reduce over pods is the same
    once = 2 * 540.354e9 / 3072 / (6.59e9 / 4)
    assert parts["between pods"] == pytest.approx({"pod": 1.0, "off": 1.0, "all": 1.5}[sharding] * once, rel=0.05)


def test_multi_head_keys_are_sharded_by_head():
    work = megatron.workload("18.4B")
    kv = next(weight for weight, _ in work.device_weights() if weight.name.endswith("kv"))
    assert kv.shard_shape == (6144, 2 * 6144 // 8)


def test_data_parallelism_alone_reduces_over_every_axis():
    layout = Layout(Mesh(1, 4, 2), DATA_AXES, shard_weights="off")
    work = Workload(PaLMConfig.from_preset("palm_8b"), layout, 2048, 8, 8)
    parts = step_time(work, A100).parts
    parameters = sum(count * prod(weight.shape) for weight, count in work.device_weights())
    assert parts["model axis"] == 0
    assert parts["data axis"] == pytest.approx(2 * 4 * parameters * 7 / 8 / 300e9, rel=1e-6)  # as one ring of eight


@pytest.mark.parametrize(("name", "tensors"), [("adafactor", 11), ("adamw", 7), ("lion", 5)])
def test_the_update_moves_the_bytes_that_its_optimizer_declares(name, tensors):
    """Reads and writes of a float32 tensor as large as the weights: AdamW reads g, m, v, p, and writes m, v, p."""
    settings, _ = load_settings(YAML / "palm_540b.yaml", [f"optimizer.name={name}"])
    work = Workload.of(settings)
    seconds = step_time(work, TPU_V4).parts["optimizer"]
    assert seconds == pytest.approx(tensors * 4 * work.device_parameters / (1200e9 * 0.8))


def test_a_factored_second_moment_is_not_moved():
    work = Workload(PaLMConfig.from_preset("palm_8b"), Layout(), 2048, 1, 1)
    factored = replace(work, optimizer=OptimizerConfig(factored=True))
    matrices = [(prod(w.shape), sum(w.shape), n) for w, n in work.device_weights() if len(w.shape) == 2]
    saved = 4 * sum(n * (size - 2 * edges) for size, edges, n in matrices)  # 11 tensors less 10, and two vectors
    assert work.optimizer_traffic - factored.optimizer_traffic == saved > 0

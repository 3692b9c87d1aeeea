"""The search for meshes, and the cost of spanning pods."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mindspore_palm.config import Settings
from mindspore_palm.cost.memory import memory_by_kind
from mindspore_palm.cost.workload import Workload
from mindspore_palm.errors import UserError
from mindspore_palm.model.weights import placements
from mindspore_palm.parallel.check import check_layout, layout_of
from mindspore_palm.plan.machines import GIB, load_machine
from mindspore_palm.plan.pods import DISPATCH, host_bytes, one_pod, span
from mindspore_palm.plan.search import USABLE, check_fits, search
from mindspore_palm.plan.step_time import step_time
from mindspore_palm.settings import load_settings

YAML = Path(__file__).resolve().parents[2] / "yaml"
TPU_V4 = load_machine("tpu-v4")


@pytest.fixture(scope="module")
def candidates():
    settings, _ = load_settings(YAML / "palm_62b.yaml")
    return search(settings, load_machine("ascend-910b"), 512)


def test_best_first_and_all_of_them_fit(candidates):
    assert len(candidates) > 10
    rates = [candidate.time.mfu for candidate in candidates]
    assert rates == sorted(rates, reverse=True)
    for candidate in candidates:
        settings = candidate.settings
        assert settings.parallel.devices == 512
        assert settings.model.heads % settings.parallel.model == 0
        assert settings.train.batch_ramp()[-1][1] % (settings.train.micro_batch or 1) == 0
        assert sum(memory_by_kind(settings, layout_of(settings, "Ascend", planned=True)).values()) <= USABLE * 64 * GIB


def test_ascend_is_not_offered_groups_that_it_does_not_have():
    settings, _ = load_settings(YAML / "palm_540b.yaml", ["parallel.pods=1"])
    pods = search(settings, TPU_V4, 3072)
    ascend = search(settings, load_machine("ascend-910b"), 3072)
    assert 12 in {c.settings.parallel.model for c in pods}
    assert {c.settings.parallel.model for c in ascend} <= {1, 2, 4, 8, 16, 24, 48}


def test_candidates_are_settings():
    settings, _ = load_settings(YAML / "palm_540b.yaml")  # with a ramp of batch sizes
    candidates = search(settings, TPU_V4, 6144)
    best = candidates[0].settings.parallel
    assert (best.pods, best.data, best.model) == (2, 256, 12)  # PaLM's own
    assert {c.settings.train.micro_batch for c in candidates} >= {0, 512}
    reduced = {c.settings.parallel.reduce_gradients for c in candidates if c.settings.train.micro_batch}
    assert reduced >= {"per_micro_batch", "pods_per_step"}
    for one in candidates:
        assert Settings.model_validate(one.settings.model_dump()) == one.settings


def test_a_refusal_gives_the_reason():
    settings, _ = load_settings(YAML / "palm_8b.yaml", ["finetune.checkpoint=runs/a", "finetune.lora_rank=4"])
    with pytest.raises(UserError, match=r"finetune\.lora_rank=4 is for one device"):
        search(settings, TPU_V4, 8)


def test_a_mesh_larger_than_a_pod_is_refused():
    settings, _ = load_settings(YAML / "palm_540b.yaml", ["parallel.pods=1", "parallel.data=512"])
    with pytest.raises(UserError, match=r"= 6,144, and a pod of TPU v4.* has 3,072"):
        check_fits(settings, TPU_V4)


def test_float32_is_refused_as_peaks_are_for_16_bits():
    settings, _ = load_settings(YAML / "palm_8b.yaml", ["train.compute_dtype=float32"])
    with pytest.raises(UserError, match="16-bit matmuls"):
        check_fits(settings, TPU_V4)


def test_no_mesh_fits():
    settings, _ = load_settings(YAML / "palm_540b.yaml", ["parallel.pods=1"])
    with pytest.raises(
        UserError,
        match="no mesh of 7 devices fits: MindSpore partitions for 1, 2, 4 or a multiple of 8; set --devices to 8",
    ):
        search(settings, TPU_V4, 7)
    with pytest.raises(UserError, match=r"on 8 devices, the smallest of \d+ layouts takes [\d,.]+ GB per device"):
        search(settings, TPU_V4, 8)


@pytest.fixture(scope="module")
def palm():
    return one_pod(Workload.of(load_settings(YAML / "palm_540b.yaml")[0]))


def test_one_pod_has_its_share(palm):
    assert (palm.devices, palm.batch, palm.layout.mesh.pods) == (3072, 1024, 1)


def test_a_host_sends_the_papers_bytes(palm):
    # 540.35e9 parameters in bfloat16 over 768 hosts are 1.31 GiB; kv, replicated over model, adds 3 %
    assert host_bytes(palm, TPU_V4) / GIB == pytest.approx(2 * 540.354e9 / 768 / GIB, rel=0.04)


def test_two_pods_send_once_either_way_and_eight_do_not(palm):
    alone = step_time(palm, TPU_V4).seconds
    once = host_bytes(palm, TPU_V4) / 6.59e9
    two, eight = span(palm, TPU_V4, 2, 6.59), span(palm, TPU_V4, 8, 6.59)
    assert two.spmd == two.pathways == pytest.approx(alone + once)
    assert eight.spmd == pytest.approx(alone + 1.75 * once)
    assert eight.pathways == pytest.approx(alone + 7 * once)
    assert span(palm, TPU_V4, 1, 6.59).pathways == alone


def test_gradients_cross_once_per_micro_batch_as_in_a_plan():
    settings, _ = load_settings(YAML / "palm_540b.yaml", ["train.micro_batch=512"])
    work = Workload.of(settings)
    assert span(one_pod(work), TPU_V4, 2, 6.59).spmd == pytest.approx(step_time(work, TPU_V4).seconds, rel=1e-3)


def test_overlap_hides_what_fits_into_the_backward_pass(palm):
    fast, slow = span(palm, TPU_V4, 2, 6.59), span(palm, TPU_V4, 2, 0.05)
    assert fast.spmd_overlap - fast.alone == pytest.approx((fast.spmd - fast.alone) / 118)
    hidden = 2 / 3 * slow.alone * 117 / 118
    assert slow.spmd_overlap == pytest.approx(slow.spmd - hidden)
    assert fast.spmd_overlap < fast.pathways_overlap < fast.pathways


def test_short_programs_wait_for_their_dispatch(palm):
    # parity with multi-controller needs programs of 35 ms on 2,048 devices (Pathways, section 5)
    assert pytest.approx(35e-3) == DISPATCH * 2048 and pytest.approx(2.3e-3, rel=0.06) == DISPATCH * 128
    tiny = replace(palm, model=palm.model.model_copy(update={"layers": 1, "d_ff": 48}))
    tiny = replace(tiny, length=16)
    result = span(tiny, TPU_V4, 2, 1000.0)
    assert result.pathways > result.spmd + 0.5 * DISPATCH * 6144


@pytest.mark.parametrize("devices", [3, 6, 12, 20])
def test_a_number_of_devices_that_mindspore_does_not_partition_for_is_refused_with_one_that_has_meshes(devices):
    settings, _ = load_settings(YAML / "palm_tiny.yaml", ["model.heads=12", "model.d_ff=768", "train.batch_size=48"])
    with pytest.raises(UserError, match=f"no mesh of {devices} devices.*set --devices to") as refusal:
        search(settings, TPU_V4, devices)
    advised = int(re.search(r"set --devices to (\d+)", str(refusal.value)).group(1))
    assert search(settings, TPU_V4, advised)


@pytest.mark.parametrize(
    ("devices", "machine"), [(8, "tpu-v4"), (16, "ascend-910b"), (24, "a100"), (48, "ascend-910b")]
)
def test_every_mesh_of_a_search_passes_the_check_before_a_run(devices, machine):
    text = ["model.heads=12", "model.d_ff=768", "train.batch_size=48", "model.vocab_size=4001", "model.d_model=192"]
    settings, _ = load_settings(YAML / "palm_tiny.yaml", text)
    machine = load_machine(machine)
    candidates = search(settings, machine, devices)
    assert candidates
    for candidate in candidates:
        check_layout(candidate.settings, layout_of(candidate.settings, machine.target, planned=True), placements)


def test_a_weight_too_small_to_matter_in_one_layer_counts_in_all_of_them():
    """kv is replicated here, as 100 rows are no multiple of 8: little beside a large table, much in 60 layers."""
    sizes = {"layers": 60, "d_model": 100, "heads": 8, "head_dim": 4, "d_ff": 64, "vocab_size": 32000}
    settings = Settings.model_validate({"model": sizes, "train": {"batch_size": 8}, "parallel": {"data": 8}})
    with pytest.raises(UserError, match="would be replicated"):
        check_layout(settings, layout_of(settings, "GPU", planned=True), placements)
    with pytest.raises(UserError, match="would be replicated"):
        check_fits(settings, TPU_V4)

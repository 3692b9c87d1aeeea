"""Bytes of a device: state as the partitioner has it, activations and temporaries as formulas say."""

from __future__ import annotations

from pathlib import Path

import pytest
from tpu import recorded
from tpu.cases import settings_of

from mindspore_palm.config import Settings
from mindspore_palm.cost.memory import memory_by_kind
from mindspore_palm.parallel.check import layout_of
from mindspore_palm.settings import load_settings

YAML = Path(__file__).resolve().parents[2] / "yaml"


def of(config, *overrides, fused=True):
    settings, _ = load_settings(YAML / f"{config}.yaml", overrides)
    return memory_by_kind(settings, layout_of(settings, "GPU"), fused)


def test_state_is_what_xla_holds_of_palm_540b():
    # 2,185,297,920 bytes of a TPU v4 chip are updated in place (tests/tpu); the norms' 118 rows are padded to 120 there
    memory = of("palm_540b")
    assert memory["weights"] + memory["optimizer state"] == 2_185_297_920 - 3 * 4 * 2 * 18432


@pytest.mark.parametrize("name", recorded.RECORDED)
def test_the_rest_is_xlas_within_a_quarter(name):
    """Beside the bytes that XLA's programs took, as recorded; the tests with -m tpu compile them anew."""
    rest = recorded.beside_state(recorded.planned(settings_of(*recorded.CASES[name])))
    assert rest == pytest.approx(recorded.RECORDED[name], rel=0.25)


def test_one_activation_a_layer_in_slices_over_model():
    # section 4 of the paper: 118 x [8,192 tokens, 18,432 / 12] in bfloat16
    assert of("palm_540b")["activations"] == 118 * 8192 * 1536 * 2


def test_what_recomputation_saves():
    none, attention, block = (of("palm_540b", f"parallel.recompute={kind}") for kind in ("none", "attention", "block"))
    scores = 118 * 8192 * 2048 * 4 * (4 + 2)  # 4 heads a device, in float32 and in bfloat16
    assert none["activations"] - attention["activations"] == scores
    assert block["activations"] < attention["activations"] / 20
    # weights of all layers stay gathered unless blocks are recomputed; kv is whole on every model rank
    layer = 18432 * 159744 // 12 + 18432 * 512 + 86016 * 18432 // 12
    assert attention["gathered weights"] == none["gathered weights"] == 118 * layer * 2
    assert "gathered weights" not in block


def test_the_slope_of_a_layer_is_xlas():
    # GiB a layer of PaLM 540B on 256 x 12, from XLA's programs of 2 and of 4 layers
    for kind, slope in (("attention", 1.424), ("none", 1.800)):
        two, four = (of("palm_540b", f"parallel.recompute={kind}", f"model.layers={n}") for n in (2, 4))
        ours = (sum(four.values()) - sum(two.values())) / 2 / 2**30
        assert ours == pytest.approx(slope, rel=0.25)


def test_a_compiler_that_keeps_inputs_needs_more():
    assert of("palm_8b", fused=False)["activations"] > 1.3 * of("palm_8b")["activations"]


def test_on_one_device_nothing_is_gathered():
    memory = memory_by_kind(Settings())
    assert "gathered weights" not in memory
    assert memory["gradients"] == memory["weights"] and memory["optimizer state"] == 2 * memory["weights"]


def test_a_checkpoint_is_written_from_a_copy_in_the_machines_memory():
    memory = memory_by_kind(Settings())
    assert memory["snapshot to save"] == memory["weights"] + memory["optimizer state"]
    assert "snapshot to save" not in memory_by_kind(Settings(), layout_of(Settings(), "Ascend"))


def test_accumulation_and_factoring():
    settings = Settings.model_validate({"train": {"micro_batch": 4}, "optimizer": {"factored": True}})
    memory = memory_by_kind(settings)
    assert memory["gradients"] == 2 * memory["weights"] and memory["optimizer state"] == memory["weights"]

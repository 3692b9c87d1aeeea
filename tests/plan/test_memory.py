"""Memory per device: state as the partitioner shards it, activations and temporaries by formulas."""

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
    return memory_by_kind(settings, layout_of(settings, "GPU", planned=True), fused)


def test_the_state_of_palm_540b_is_xlas_to_the_byte():
    # XLA updates 2,185,297,920 bytes in place on a TPU v4 chip (tests/tpu), with the norms' 118 rows padded to 120
    memory = of("palm_540b")
    assert memory["weights"] + memory["optimizer state"] == 2_185_297_920 - 3 * 4 * 2 * 18432


@pytest.mark.parametrize("name", recorded.RECORDED)
def test_the_rest_is_xlas_within_a_quarter(name):
    """Against the recorded bytes of XLA's programs; the tests with -m tpu compile them again."""
    rest = recorded.beside_state(recorded.planned(settings_of(*recorded.CASES[name])))
    assert rest == pytest.approx(recorded.RECORDED[name], rel=0.25)


def test_one_activation_per_layer_sharded_over_model():
    # section 4 of the paper: 118 x [8,192 tokens, 18,432 / 12] in bfloat16
    assert of("palm_540b")["activations"] == 118 * 8192 * 1536 * 2


def test_what_recomputation_saves():
    none, attention, block = (of("palm_540b", f"parallel.recompute={kind}") for kind in ("none", "attention", "block"))
    scores = 118 * 8192 * 2048 * 4 * (4 + 2)  # 4 heads per device, in float32 and in bfloat16
    assert none["activations"] - attention["activations"] == scores
    assert block["activations"] < attention["activations"] / 20
    # weights of all layers stay gathered unless blocks are recomputed; kv is replicated over model
    layer = 18432 * 159744 // 12 + 18432 * 512 + 86016 * 18432 // 12
    assert attention["gathered weights"] == none["gathered weights"] == 118 * layer * 2
    assert "gathered weights" not in block


def test_the_slope_of_a_layer_is_xlas():
    # GiB per layer of PaLM 540B on 256 x 12, from XLA's programs of 2 and of 4 layers
    for kind, slope in (("attention", 1.424), ("none", 1.800)):
        two, four = (of("palm_540b", f"parallel.recompute={kind}", f"model.layers={n}") for n in (2, 4))
        ours = (sum(four.values()) - sum(two.values())) / 2 / 2**30
        assert ours == pytest.approx(slope, rel=0.25)


def test_a_compiler_that_saves_all_inputs_needs_more():
    assert of("palm_8b", fused=False)["activations"] > 1.3 * of("palm_8b")["activations"]


def test_on_one_device_nothing_is_gathered():
    memory = memory_by_kind(Settings())
    assert "gathered weights" not in memory
    assert memory["gradients"] == memory["weights"] and memory["optimizer state"] == 2 * memory["weights"]


def test_a_checkpoint_is_written_from_a_copy_in_the_machines_memory():
    memory = memory_by_kind(Settings())
    assert memory["snapshot to save"] == memory["weights"] + memory["optimizer state"]
    assert "snapshot to save" not in memory_by_kind(Settings(), layout_of(Settings(), "Ascend", planned=True))


def test_accumulation_counts_gradients_twice():
    settings = Settings.model_validate({"train": {"micro_batch": 4}})
    memory = memory_by_kind(settings)
    assert memory["gradients"] == 2 * memory["weights"]


def test_sums_of_gradients_that_are_reduced_once_a_step_are_full_ones():
    parallel = {"pods": 2, "data": 2, "recompute": "block"}
    settings = Settings.model_validate({"train": {"batch_size": 16, "micro_batch": 4}, "parallel": parallel})

    def memory(reduced):
        again = settings.parallel.model_copy(update={"reduce_gradients": reduced})
        changed = settings.model_copy(update={"parallel": again})
        return memory_by_kind(changed, layout_of(changed))

    each, pods, step = map(memory, ("per_micro_batch", "pods_per_step", "per_step"))
    assert each == pods and "gathered weights" not in each
    scales = settings.model.layers * settings.model.d_model  # of norms, which are not sharded
    full = 4 * (sum(settings.model.parameters_by_kind().values()) + scales)  # float32
    assert step["gradients"] - step["weights"] == full
    assert step["weights"] == (full + 4 * scales) / 2
    assert step["gathered weights"] > 0


SIZES = {"layers": 3, "d_model": 20, "heads": 2, "head_dim": 6, "d_ff": 40, "vocab_size": 50}
NORM_SCALES = 3 * 20
MATRICES = {"embedding": (50, 20), "q_wi": (20, 2 * 6 + 2 * 40), "kv": (20, 12), "o_wo": (12 + 40, 20)}


@pytest.mark.parametrize(
    ("optimizer", "moments"),
    [
        ({"name": "adafactor"}, 2),
        ({"name": "adamw"}, 2),
        ({"name": "lion"}, 1),
    ],
)
def test_full_moments_are_as_large_as_the_weights(optimizer, moments):
    weights = (
        sum(a * b * (1 if name == "embedding" else 3) for name, (a, b) in MATRICES.items()) + NORM_SCALES
    )  # norm scales
    memory = memory_by_kind(Settings.model_validate({"model": SIZES, "optimizer": optimizer}))
    assert memory["weights"] == 4 * weights
    assert memory["optimizer state"] == moments * 4 * weights
    assert memory["snapshot to save"] == (1 + moments) * 4 * weights


def test_factored_moments_are_a_row_and_a_column_of_each_matrix():
    m = sum(a * b * (1 if name == "embedding" else 3) for name, (a, b) in MATRICES.items()) + NORM_SCALES
    v = sum((a + b) * (1 if name == "embedding" else 3) for name, (a, b) in MATRICES.items()) + NORM_SCALES
    memory = memory_by_kind(Settings.model_validate({"model": SIZES, "optimizer": {"factored": True}}))
    assert memory["optimizer state"] == 4 * (m + v)


def test_factored_moments_are_full_vectors_on_every_device():
    factored, full = (of("palm_540b", f"optimizer.factored={setting}") for setting in ("true", "false"))
    assert full["optimizer state"] == 2 * full["weights"] and factored["weights"] == full["weights"]
    sides = 258048 + 18432 + 118 * ((18432 + 159744) + (18432 + 512) + (86016 + 18432))
    assert factored["optimizer state"] == factored["weights"] + 4 * (
        sides + 118 * 18432
    )  # m, and v of matrices and norms


def test_moments_are_sharded_as_the_weights_are():
    lion, adamw = (of("palm_540b", f"optimizer.name={name}") for name in ("lion", "adamw"))
    assert lion["optimizer state"] == lion["weights"] == adamw["weights"]
    assert adamw["optimizer state"] == 2 * adamw["weights"]


def test_only_adafactor_holds_the_updates_of_all_weights():
    """One layer on one token: the update takes more than the loss or a block."""
    tiny = {"model": SIZES, "data": {"seq_len": 2}, "train": {"batch_size": 1}}
    adafactor, lion = (
        memory_by_kind(Settings.model_validate({**tiny, "optimizer": {"name": name}})) for name in ("adafactor", "lion")
    )
    assert adafactor["temporaries"] == adafactor["weights"] > lion.get("temporaries", 0)


def test_with_lora_the_update_takes_memory_for_a_and_b_alone():
    tiny = {"model": SIZES, "data": {"seq_len": 2}, "train": {"batch_size": 1}}
    lora = {**tiny, "finetune": {"checkpoint": "runs/some", "lora_rank": 1}}
    adafactor, lion = (
        memory_by_kind(Settings.model_validate({**lora, "optimizer": {"name": name}})) for name in ("adafactor", "lion")
    )
    a_and_b = 3 * (20 + 92 + 20 + 12 + 52 + 20)  # rows and columns of q_wi, kv and o_wo
    assert adafactor["gradients"] == 4 * a_and_b
    assert adafactor["optimizer state"] == 2 * lion["optimizer state"] == 2 * 4 * a_and_b
    assert adafactor["temporaries"] == max(lion["temporaries"], 4 * a_and_b)

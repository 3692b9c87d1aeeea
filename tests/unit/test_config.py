"""The sizes that the paper publishes, presets, and what each section of the settings refuses."""

import pytest
from pydantic import ValidationError

from mindspore_palm.config import PaLMConfig, Settings, TrainConfig
from mindspore_palm.presets import PRESETS

PUBLISHED = {  # table 1, and FLOPs a token by appendix B at length 2048 in 10^12: the model's, and the hardware's
    "palm_8b": (8_631_877_632, 0.0550, "attention", 0.0561),
    "palm_62b": (62_495_129_600, 0.388, "attention", 0.392),
    "palm_540b": (540_354_281_472, 3.28, "block", 4.10),
}
FIELDS = [
    (section, name, field)
    for section, group in Settings.model_fields.items()
    for name, field in group.annotation.model_fields.items()
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name):
    config = PaLMConfig.from_preset(name)
    assert config.parameter_count() == PUBLISHED[name][0]
    assert sum(config.parameters_by_kind().values()) == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_flops(name):
    teraflops = PaLMConfig.from_preset(name).flops_per_token(2048) / 1e12
    assert f"{teraflops:.3g}" == f"{PUBLISHED[name][1]:.3g}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_flops_with_what_is_recomputed(name):
    config, (_, _, recompute, published) = PaLMConfig.from_preset(name), PUBLISHED[name]
    assert f"{config.hardware_flops_per_token(2048, recompute) / 1e12:.3g}" == f"{published:.3g}"
    assert config.hardware_flops_per_token(2048, "none") == config.flops_per_token(2048)


def test_flops_grow_with_the_length_by_attention_alone():
    config = PaLMConfig(layers=3, heads=2, head_dim=4, d_ff=8)
    assert config.flops_per_token(0) == 6 * config.parameter_count()
    assert config.flops_per_token(11) - config.flops_per_token(10) == 12 * 3 * 2 * 4


def test_multi_head_costs_a_key_and_a_value_for_every_query_head():
    one = PaLMConfig(layers=2, d_model=16, heads=4, head_dim=6, d_ff=32)
    many = PaLMConfig(layers=2, d_model=16, heads=4, head_dim=6, d_ff=32, attention="multi_head")
    assert (one.kv_heads, many.kv_heads) == (1, 4)
    assert many.parameter_count() - one.parameter_count() == 2 * 16 * 2 * 3 * 6


@pytest.mark.parametrize(("mlp", "inputs"), [("swiglu", 2), ("geglu", 2), ("gelu", 1), ("relu", 1)])
def test_gated_layers_have_two_inputs(mlp, inputs):
    config = PaLMConfig(layers=1, d_model=8, heads=2, d_ff=10, mlp=mlp)
    assert config.mlp_inputs == inputs
    assert config.parameters_by_kind()["mlp"] == 8 * 10 * (inputs + 1)


@pytest.mark.parametrize(("size", "multiple", "rows"), [(4096, 1, 4096), (1000, 128, 1024), (1024, 128, 1024)])
def test_padded_vocab(size, multiple, rows):
    config = PaLMConfig(vocab_size=size, vocab_multiple=multiple)
    assert config.padded_vocab == rows
    assert config.parameters_by_kind()["embedding"] == size * config.d_model  # padding is not counted


def test_presets_are_whole_and_differ():
    sizes = [PaLMConfig.from_preset(name).parameter_count() for name in PRESETS]
    assert sizes == sorted(set(sizes))


def test_a_preset_with_overrides():
    config = PaLMConfig.from_preset("palm_8b", layers=2)
    assert (config.layers, config.d_model, config.heads, config.head_dim) == (2, 4096, 16, 256)
    assert config == PaLMConfig(preset="palm_8b", layers=2)


def test_an_unknown_preset_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"palm_9b.*palm_8b"):
        PaLMConfig.from_preset("palm_9b")
    with pytest.raises(ValidationError, match="palm_8b"):
        PaLMConfig(preset="palm_9b")


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        PaLMConfig().layers = 3


def test_a_plain_batch_size_is_a_ramp_of_one():
    assert TrainConfig(batch_size=8).batch_ramp() == [(0, 8)]
    assert TrainConfig(batch_size=[[0, 8], [5, 16]]).batch_ramp() == [(0, 8), (5, 16)]


@pytest.mark.parametrize(
    "ramp",
    [
        [],
        [[5, 8]],
        [[-1, 8]],
        [[0, 8], [0, 16]],
        [[0, 8], [9, 16], [5, 32]],
        [[0, 0]],
        [[0, 8], [5, -8]],
        [[0]],
        [[0, 8, 9]],
        [0, 8],
        [[0, 8.0]],
        [[0, True]],
        [[0, "8"]],
        0,
    ],
)
def test_bad_ramps(ramp):
    with pytest.raises(ValidationError):
        TrainConfig(batch_size=ramp)


def test_the_ramp_of_the_paper_is_taken():
    assert len(TrainConfig(batch_size=[[0, 512], [50000, 1024], [115000, 2048]], micro_batch=256).batch_ramp()) == 3


@pytest.mark.parametrize("batch_size", [10, [[0, 8], [5, 10]]])
def test_micro_batch_divides_every_size(batch_size):
    with pytest.raises(ValidationError, match="set it to 12"):
        TrainConfig(batch_size=batch_size, micro_batch=4)


def test_micro_batch_of_a_batch():
    assert TrainConfig(batch_size=8, micro_batch=4).micro_batch_of(8) == 4
    assert TrainConfig(batch_size=8).micro_batch_of(8) == 8


@pytest.mark.parametrize(("section", "name", "field"), FIELDS, ids=[f"{s}.{n}" for s, n, _ in FIELDS])
def test_every_setting_says_what_it_is_and_its_default(section, name, field):
    said = " ".join((field.description or "").split())
    assert len(said) > 10, f"{section}.{name} is not described"
    default = {True: "true", False: "false"}[field.default] if isinstance(field.default, bool) else field.default
    if name in ("preset", "tokenizer"):  # empty text has no name of its own
        assert "default: none" in said.lower() or "default empty" in said.lower()
    elif name == "path":
        assert "python-stdlib (default)" in said
    elif isinstance(default, (int, float)):
        word = said.lower().split("default")[1].replace(":", " ").split()[0].rstrip(".,")
        assert float(word) == default
    else:
        assert f"default {default}" in said.lower().replace("default: ", "default ")

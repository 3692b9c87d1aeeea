"""Departures from PaLM: declared once, and refused by everybody who does not say that it supports them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from parallel.cases import NETWORKS, OPTIMIZER_SETTINGS
from parallel.suite import DEPARTURES

from mindspore_palm.config import PaLMConfig, ParallelConfig, Settings
from mindspore_palm.convert.conceptofmind import CONCEPTOFMIND
from mindspore_palm.convert.flaxformer import Flaxformer
from mindspore_palm.convert.huggingface import HuggingFace
from mindspore_palm.convert.lucidrains import LUCIDRAINS
from mindspore_palm.convert.model import Model, Options
from mindspore_palm.convert.widen import widen
from mindspore_palm.errors import UserError
from mindspore_palm.generate import command as generate
from mindspore_palm.generate.cpu import step as cpu_step
from mindspore_palm.model.weights import placements
from mindspore_palm.parallel.check import SUPPORTED, check_layout, layout_of
from mindspore_palm.settings import load_settings, model_config

SIZES = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 8, "d_ff": 32, "vocab_size": 64}
TORCH = {"norm": "layer_norm", "norm_epsilon": 1e-5, "final_norm_scale": True, "scaled_logits": False}
HEADS, MLP = {"attention": "multi_head"}, {"block": "serial", "mlp": "gelu"}
MESH = ("parallel.data=2", "train.batch_size=8")


class Later(PaLMConfig):
    """PaLM as a later version may have it: with one more switch, of which nobody has been told."""

    gate: Literal["none", "sigmoid"] = "none"


WRITERS = [
    pytest.param(HuggingFace(), {}, id="Hugging Face"),
    pytest.param(Flaxformer(), {}, id="flaxformer"),
    pytest.param(LUCIDRAINS, {**TORCH, "norm_scale": "around_one"}, id="lucidrains"),
    pytest.param(CONCEPTOFMIND, {**TORCH, "xpos_base": 512.0}, id="conceptofmind"),
]
"""Each format that holds PaLM alone, with the switches of a model that it does hold."""


def test_palm_departs_from_itself_in_nothing():
    assert PaLMConfig.from_preset("palm_540b").departures() == {}
    assert Settings().departures() == {}


@pytest.mark.parametrize(
    ("overrides", "departures"),
    [
        (["model.block=serial", "model.mlp=gelu"], {"model.block": "serial", "model.mlp": "gelu"}),
        (["model.norm_epsilon=1e-5"], {"model.norm_epsilon": 1e-5}),
        (["model.d_model=64", "model.layers=2", "model.vocab_multiple=8"], {}),
        (["optimizer.factored=true"], {"optimizer.factored": True}),
        (["optimizer.factored=true", "optimizer.name=adamw"], {}),
        (["finetune.checkpoint=runs/base", "finetune.lora_rank=4"], {"finetune.lora_rank": 4}),
    ],
)
def test_departures_are_the_fields_that_are_no_sizes_and_not_palms(overrides, departures):
    assert load_settings(None, overrides)[0].departures() == departures


def test_what_a_caller_supports_is_left_out():
    config = PaLMConfig(mlp="gelu", norm="layer_norm")
    assert config.departures(("norm",)) == {"mlp": "gelu"}


def test_a_later_switch_is_a_departure_only_when_it_is_switched():
    assert Later(**SIZES).departures() == {} and Later(**SIZES, gate="sigmoid").departures() == {"gate": "sigmoid"}


@pytest.mark.parametrize(("gate", "refused"), [("none", False), ("sigmoid", True)])
def test_a_mesh_refuses_a_departure_that_it_was_not_told_of(gate, refused):
    settings = load_settings(None, [*MESH, *(f"model.{name}={size}" for name, size in SIZES.items())])[0]
    settings = settings.model_copy(update={"model": Later(**SIZES, gate=gate)})
    if not refused:
        return check_layout(settings, layout_of(settings), placements)
    with pytest.raises(UserError, match=r"model\.gate=sigmoid is for one device, and parallel asks for 2"):
        check_layout(settings, layout_of(settings), placements)


def test_every_departure_that_a_mesh_supports_is_trained_on_meshes():
    trained = {(f"model.{name}", value) for switches in NETWORKS.values() for name, value in switches.items()}
    trained |= {
        (f"optimizer.{name}", v) for case in DEPARTURES for name, v in OPTIMIZER_SETTINGS[case.optimizer].items()
    }
    assert {case.network for case in DEPARTURES} == set(NETWORKS)
    for setting, values in SUPPORTED.items():
        assert values or setting in dict(trained), setting
        assert {(setting, value) for value in values} <= trained, setting


def test_a_mesh_refuses_a_value_that_it_was_not_told_of():
    settings = load_settings(None, [*MESH, *(f"model.{name}={size}" for name, size in SIZES.items())])[0]
    known, later = (Later(**SIZES).model_copy(update={"mlp": mlp}) for mlp in ("relu", "relu2"))
    check_layout(settings.model_copy(update={"model": known}), layout_of(settings), placements)
    with pytest.raises(UserError, match=r"model\.mlp=relu2 is for one device, and parallel asks for 2"):
        check_layout(settings.model_copy(update={"model": later}), layout_of(settings), placements)


@pytest.mark.parametrize(
    ("switches", "refused"),
    [({}, ""), ({"gate": "sigmoid"}, "gate=sigmoid"), (HEADS, "attention=multi_head"), (MLP, "")],
)
def test_decoding_on_several_devices_refuses_what_it_does_not_support(switches, refused):
    settings = Settings(parallel=ParallelConfig(model=2)).model_copy(update={"model": Later(**SIZES, **switches)})
    if not refused:
        return generate._check_devices(settings, layout_of(settings))
    with pytest.raises(UserError, match=rf"--devices 2: a model with model\.{refused} decodes on one device"):
        generate._check_devices(settings, layout_of(settings))


@pytest.mark.parametrize(("gate", "refused"), [("none", False), ("sigmoid", True)])
def test_the_compiled_step_leaves_such_a_network_to_mindspore(gate, refused):
    assert cpu_step.wanted(Later(**SIZES, gate=gate)) is not refused


@pytest.mark.parametrize(("writer", "switches"), WRITERS)
def test_a_format_refuses_it(writer, switches, tmp_path):
    model = Model(Later(**SIZES, **switches, gate="sigmoid"), {})
    with pytest.raises(UserError, match=r"cannot hold this model exactly: .*model\.gate=none \(here sigmoid\)"):
        writer.write(model, tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()


def test_widening_refuses_it():
    with pytest.raises(UserError, match=r"--widen .*model\.gate=none"):
        widen(Model(Later(**SIZES, gate="sigmoid"), {"embedding": np.zeros((64, 16), np.float32)}))


class TestTheOldNameOfTheBlock:
    """It was model.parallel, true or false."""

    @pytest.mark.parametrize(("old", "new"), [("true", "parallel"), ("false", "serial")])
    def test_a_file_may_still_have_it(self, old, new, tmp_path):
        (tmp_path / "config.yaml").write_text(f"model:\n  layers: 2\n  parallel: {old}\n")
        settings, origins = load_settings(tmp_path / "config.yaml")
        assert settings.model.block == new and origins["model.block"] == str(tmp_path / "config.yaml")
        assert model_config({"parallel": old == "true"}, "final/config.yaml").block == new

    @pytest.mark.parametrize(("old", "new"), [("true", "parallel"), ("false", "serial")])
    def test_the_command_line_is_answered_with_the_new_one(self, old, new):
        with pytest.raises(UserError) as caught:
            load_settings(None, [f"model.parallel={old}"])
        assert str(caught.value) == (
            f"override model.parallel={old}: model.parallel is called model.block now; write model.block={new}"
        )

    @pytest.mark.parametrize("text", ["1", "'true'", "serial", "[]", "null"])
    def test_another_value_of_it_is_refused(self, text, tmp_path):
        (tmp_path / "config.yaml").write_text(f"model: {{parallel: {text}}}\n")
        with pytest.raises(UserError, match=r"model\.parallel = .*: must be true or false$"):
            load_settings(tmp_path / "config.yaml")
        with pytest.raises(UserError, match=r"is called model\.block now; write model\.block=parallel$"):
            load_settings(None, [f"model.parallel={text}"])

    @pytest.mark.parametrize("order", ["parallel: true, block: serial", "block: serial, parallel: true"])
    def test_both_names_at_once_are_refused(self, order, tmp_path):
        (tmp_path / "config.yaml").write_text(f"model: {{{order}}}\n")
        with pytest.raises(UserError, match=r"and both are there; remove one$"):
            load_settings(tmp_path / "config.yaml")

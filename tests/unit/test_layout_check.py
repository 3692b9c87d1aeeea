"""What does not fit a mesh is one sentence with the fix, before anything is compiled."""

from __future__ import annotations

import pytest

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.model.initial import placements
from mindspore_palm.parallel.check import check_layout, check_servers, layout_of
from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.train.sharding import describe_layout

MODEL = {"layers": 2, "d_model": 64, "heads": 4, "head_dim": 16, "d_ff": 256, "vocab_size": 256}


def check(target="GPU", **sections):
    settings = Settings.model_validate({"model": MODEL, "train": {"batch_size": 8}} | sections)
    place = layout_of(settings, target)
    check_layout(settings, place, placements(settings.model, place))
    return place


def refused(target="GPU", **sections):
    with pytest.raises(UserError) as caught:
        check(target, **sections)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_fits_passes():
    assert check(parallel={"pods": 2, "data": 2, "model": 2}).devices == 8
    assert check(parallel={"model": 4, "strategy": "data"}).shards("heads") == 1
    assert check().devices == 1


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"parallel": {"model": 3}}, ["model.heads = 4", "parallel.model = 3", "for example 2"]),
        (
            {"parallel": {"model": 2}, "model": {**MODEL, "vocab_size": 255}},
            ["255 rows of the embedding", "parallel.model = 2", "model.vocab_multiple to 2"],
        ),
        (
            {"parallel": {"data": 4, "model": 2}, "model": {**MODEL, "vocab_size": 250}},
            ["embedding", "no multiple of 4", "model.vocab_multiple to 8"],
        ),
        ({"parallel": {"data": 3}}, ["train.batch_size = 8", "parallel.pods x parallel.data = 3", "set it to 9"]),
        (
            {"parallel": {"data": 4}, "train": {"batch_size": 8, "micro_batch": 2}},
            ["train.micro_batch = 2", "= 4 equal parts", "set it to 4"],
        ),
        (
            {"parallel": {"data": 8}, "model": {**MODEL, "d_model": 60, "vocab_size": 256}},
            ["blocks.0.q_wi", "whole on every device", "shard_weights=off"],
        ),
        ({"parallel": {"data": 2}, "model": {**MODEL, "mlp": "relu"}}, ["model.mlp=relu is for one device"]),
        *[
            ({"parallel": {"data": 2}, "model": {**MODEL, name: value}}, [f"model.{name}={said} is for one device"])
            for name, value, said in (
                ("norm", "layer_norm", "layer_norm"),
                ("norm_scale", "around_one", "around_one"),
                ("final_norm_scale", True, "true"),
                ("scaled_logits", False, "false"),
                ("xpos_base", 512.0, "512"),
            )
        ],
        ({"parallel": {"data": 2}, "optimizer": {"factored": True}}, ["optimizer.factored=true is for one device"]),
    ],
)
def test_what_does_not_fit(sections, said):
    message = refused(**sections)
    for part in said:
        assert part in message, message


def test_bfloat16_products_are_not_for_cpu():
    assert "set float32 or float16" in refused("CPU", train={"compute_dtype": "bfloat16"})
    assert check("GPU").compute_dtype == "bfloat16" and check("CPU").compute_dtype == "float32"


@pytest.mark.parametrize("model", [1, 2, 4, 8, 16, 24])
def test_ascend_takes_groups_that_fill_servers_evenly(model):
    check_servers(Mesh(pods=2, data=256, model=model))


@pytest.mark.parametrize("model", [6, 12])
def test_ascend_refuses_others(model):
    with pytest.raises(UserError, match=rf"parallel.model = {model}: on Ascend.*8, 16 or 24"):
        check_servers(Mesh(pods=2, data=256, model=model))


def test_the_table_to_read():
    settings = Settings.model_validate({"model": MODEL, "parallel": {"pods": 2, "data": 2, "model": 2}})
    place = layout_of(settings, "GPU")
    text = describe_layout(place, placements(settings.model, place))
    q_wi = next(line for line in text.splitlines() if line.startswith("blocks.0-1.q_wi"))
    expected = "blocks.0-1.q_wi embed, heads data(2), model 64 x 576 32 x 288 0.037 2"
    assert " ".join(q_wi.split()) == expected
    assert "= 8 devices" in text

"""Settings that do not fit a mesh are one sentence with the fix, before anything is compiled."""

from __future__ import annotations

import random
import re

import pytest
import yaml
from pydantic import ValidationError

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.model.weights import placements
from mindspore_palm.parallel.check import check_layout, check_servers, layout_of
from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.plan.sharding import describe_layout

MODEL = {"layers": 2, "d_model": 64, "heads": 4, "head_dim": 16, "d_ff": 256, "vocab_size": 256}


def check(target="GPU", **sections):
    settings = Settings.model_validate({"model": MODEL, "train": {"batch_size": 8}} | sections)
    place = layout_of(settings, target)
    check_layout(settings, place, placements)
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
    "departure",
    [
        *(
            {"model": {**MODEL, name: value}}
            for name, value in (
                ("block", "serial"),
                ("attention", "multi_head"),
                ("mlp", "gelu"),
                ("norm", "layer_norm"),
                ("norm_scale", "around_one"),
                ("final_norm_scale", True),
                ("scaled_logits", False),
                ("xpos_base", 512.0),
            )
        ),
        {"optimizer": {"factored": True}},
    ],
    ids=str,
)
def test_what_departs_from_palm_and_runs_on_a_mesh(departure):
    assert Settings.model_validate(departure).departures()
    assert check(parallel={"pods": 2, "data": 2, "model": 2}, **departure).devices == 8


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"parallel": {"model": 3}},
            ["parallel.model = 3 devices", "1, 2, 4 or a multiple of 8", "set parallel.model=2"],
        ),
        ({"parallel": {"model": 8}}, ["model.heads = 4", "parallel.model = 8", "set parallel.model=4"]),
        (
            {"parallel": {"model": 2}, "model": {**MODEL, "vocab_size": 255}},
            ["255 rows of the embedding", "parallel.model = 2", "set model.vocab_multiple=2"],
        ),
        (
            {"parallel": {"data": 4, "model": 2}, "model": {**MODEL, "vocab_size": 250}},
            ["embedding", "no multiple of 4", "set model.vocab_multiple=8"],
        ),
        ({"parallel": {"data": 3}}, ["parallel.data = 3 devices", "set parallel.data=2"]),
        (
            {"parallel": {"data": 2}, "train": {"batch_size": 9}},
            ["train.batch_size = 9", "parallel.pods x parallel.data = 2", "set train.batch_size=10"],
        ),
        (
            {"parallel": {"data": 4}, "train": {"batch_size": 8, "micro_batch": 2}},
            ["train.micro_batch = 2", "= 4 equal parts", "set train.micro_batch=4"],
        ),
        (
            {"parallel": {"data": 8}, "model": {**MODEL, "d_model": 60, "vocab_size": 256}},
            ["blocks.0.q_wi", "replicated on every device", "set parallel.shard_weights=off"],
        ),
        (
            {"parallel": {"data": 2}, "finetune": {"checkpoint": "runs/a", "lora_rank": 4}},
            ["finetune.lora_rank=4 is for one device", "set finetune.lora_rank=0"],
        ),
        (
            {"parallel": {"model": 8}, "model": {**MODEL, "attention": "multi_head"}},
            ["model.heads = 4", "parallel.model = 8", "set parallel.model=4"],
        ),
    ],
)
def test_what_does_not_fit(sections, said):
    message = refused(**sections)
    for part in said:
        assert part in message, message


PIPED = {"batch_size": 8, "micro_batch": 4}


@pytest.mark.parametrize(
    ("parallel", "sections", "said"),
    [
        ({}, {"train": {"batch_size": 8}}, ["needs 2 micro-batches", "has 1", "set train.micro_batch=4"]),
        ({"stages": 4}, {}, ["parallel.stages = 4 needs 4 layers", "model.layers = 2", "set parallel.stages=2"]),
        ({"interleave": 2}, {}, ["needs 4 layers, and model.layers = 2", "set parallel.interleave=1"]),
        (
            {"stage_layers": [3, 1]},
            {},
            ["[3, 1] are 2 runs of 4 layers", "need 2 of 2", "stage_layers=[]"],
        ),
        ({"schedule": "gpipe"}, {}, ["for interleaved stages alone", "set parallel.schedule=1f1b"]),
        ({"schedule": "zero_bubble_v", "interleave": 3}, {}, ["has 2 runs of layers a stage"]),
        (
            {"schedule": "zero_bubble_v", "interleave": 2},
            {"model": {**MODEL, "layers": 4}},
            ["needs 4 micro-batches", "has 2", "set train.micro_batch=2"],
        ),
        ({}, {"finetune": {"checkpoint": "runs/a"}}, ["fine-tuning takes one stage", "set parallel.stages=1"]),
        (
            {},
            {"train": {**PIPED, "compute_dtype": "float16"}},
            ["needs a loss scale", "compute_dtype=float32"],
        ),
    ],
)
def test_what_a_pipeline_does_not_take(parallel, sections, said):
    message = refused("CPU", **{"train": PIPED, "parallel": {"stages": 2, **parallel}, **sections})
    for part in said:
        assert part in message, message


@pytest.mark.parametrize(
    ("parallel", "sections", "said"),
    [
        (
            {"stages": 2, "reduce_gradients": "per_micro_batch"},
            {},
            ["once a step", "set parallel.reduce_gradients=per_step"],
        ),
        ({"reduce_gradients": "pods_per_step"}, {}, ["each of several pods", "set parallel.reduce_gradients=per_step"]),
        ({"reduce_gradients": "pods_per_step", "pods": 2, "shard_weights": "all"}, {}, ["each of several pods"]),
        ({"reduce_gradients": "pods_per_step", "pods": 2, "data": 1}, {}, ["each of several pods"]),
        (
            {"reduce_gradients": "per_step"},
            {"finetune": {"checkpoint": "runs/a"}},
            ["gradients of one micro-batch after the other", "set parallel.reduce_gradients=per_micro_batch"],
        ),
        (
            {"reduce_gradients": "per_step"},
            {"train": {**PIPED, "compute_dtype": "float16"}},
            ["needs a loss scale", "set train.compute_dtype=float32"],
        ),
        ({"reduce_dtype": "compute_dtype"}, {}, ["full gradients between pods", "set parallel.shard_weights=off"]),
        (
            {"reduce_dtype": "compute_dtype", "reduce_gradients": "per_step"},
            {},
            ["summed over a step are float32", "set parallel.reduce_dtype=float32"],
        ),
        ({"reduce_dtype": "compute_dtype", "stages": 2}, {}, ["summed over a step are float32"]),
    ],
)
def test_reductions_that_a_mesh_does_not_have(parallel, sections, said):
    message = refused("CPU", **{"train": PIPED, "parallel": {"data": 2, **parallel}, **sections})
    for part in said:
        assert part in message, message


def test_steps_of_one_micro_batch_are_the_same_graph_whatever_reduces_them():
    """Otherwise, full sharding would keep weights gathered that recomputation gathers twice."""
    one = {"batch_size": 8, "micro_batch": 8}
    assert not check(train=one, parallel={"data": 2, "reduce_gradients": "per_step"}).unrolled
    assert check(train=PIPED, parallel={"data": 2, "reduce_gradients": "per_step"}).unrolled


def test_the_table_of_a_pipeline_is_replicated_over_data_on_purpose():
    """Half of this network's weights are in the table."""
    assert check(train=PIPED, parallel={"stages": 2, "data": 2, "model": 2}).weight_shards == 2


def test_a_fine_tuned_model_is_not_advised_to_become_another():
    said = refused(parallel={"model": 8}, finetune={"checkpoint": "runs/a"})
    assert said.endswith("set parallel.model=4")
    said = refused(parallel={"model": 2}, model={**MODEL, "vocab_size": 255}, finetune={"checkpoint": "runs/a"})
    assert said.endswith("set model.vocab_multiple=2")


@pytest.mark.parametrize(("target", "auto"), [("CPU", "float32"), ("GPU", "float32"), ("Ascend", "bfloat16")])
def test_auto_is_a_dtype_that_the_device_has(target, auto):
    assert check(target).compute_dtype == auto
    assert check(target, train={"compute_dtype": "float16"}).compute_dtype == "float16"


@pytest.mark.parametrize("target", ["CPU", "GPU"])
def test_a_dtype_that_the_device_lacks_is_refused(target):
    said = refused(target, train={"compute_dtype": "bfloat16"})
    assert said.startswith(f"train.compute_dtype = bfloat16: MindSpore's {target} backend has no bfloat16")
    assert said.endswith("set train.compute_dtype=float32")


def test_a_plan_takes_any_dtype():
    """It needs no kernel, and a TPU is planned for as a GPU."""
    for dtype, expected in (("auto", "bfloat16"), ("bfloat16", "bfloat16"), ("float32", "float32")):
        settings = Settings.model_validate({"model": MODEL, "train": {"compute_dtype": dtype}})
        layout = layout_of(settings, "GPU", planned=True)
        assert layout.compute_dtype == expected
        check_layout(settings, layout, placements)


@pytest.mark.parametrize("model", [1, 2, 4, 8, 16, 24])
def test_ascend_takes_groups_that_fill_servers_evenly(model):
    check_servers(Mesh(pods=2, data=256, model=model))


@pytest.mark.parametrize("model", [6, 12])
def test_ascend_refuses_others(model):
    with pytest.raises(UserError, match=rf"parallel.model = {model}: on Ascend.*8, 16 or 24"):
        check_servers(Mesh(pods=2, data=256, model=model))


def test_the_short_check_of_groups_agrees_with_a_check_of_all_of_them():
    draw = random.Random(3)
    for _ in range(120):
        mesh = Mesh(*(draw.choice([1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 80, 83]) for _ in range(3)))
        patterns = set()
        for rank in range(min(mesh.devices, 8 * mesh.model * mesh.data)) if mesh.devices < 2_000 else ():
            for axis in mesh.sizes:
                places = {}
                for member in mesh.group(rank, [axis]):
                    places.setdefault(member // 8, set()).add(member % 8)
                patterns.add(len({frozenset(taken) for taken in places.values()}) == 1)
            if False in patterns:
                break
        if patterns and False in patterns:
            with pytest.raises(UserError):
                check_servers(mesh)
        elif patterns:
            check_servers(mesh)


def test_a_mesh_of_a_million_devices_along_each_axis_is_answered_at_once():
    for target in ("CPU", "GPU", "Ascend"):
        refused(target, parallel={"pods": 10**6, "data": 10**6, "model": 10**6 - 1})


def test_the_table_to_read():
    settings = Settings.model_validate({"model": MODEL, "parallel": {"pods": 2, "data": 2, "model": 2}})
    place = layout_of(settings, "GPU")
    text = describe_layout(place, placements(settings.model, place))
    q_wi = next(line for line in text.splitlines() if line.startswith("blocks.0-1.q_wi"))
    expected = "blocks.0-1.q_wi embed, heads data(2), model 64 x 576 32 x 288 0.037 2"
    assert " ".join(q_wi.split()) == expected
    assert "= 8 devices" in text


# Values that divide, that do not, and that are too small for a mesh.
MESHES = {"pods": [1, 1, 2, 3], "data": [1, 2, 3, 4, 6, 8, 12], "model": [1, 2, 3, 4, 8, 12]}
KINDS = {
    "parallel": {
        **MESHES,
        "strategy": ["palm", "palm", "data", "model"],
        "shard_weights": ["off", "pod", "all"],
        "recompute": ["none", "attention", "block"],
    },
    "model": {
        "heads": [1, 2, 3, 4, 8, 12, 24],
        "d_ff": [24, 48, 96],
        "head_dim": [2, 4],
        "d_model": [2, 7, 16, 36, 96],
        "vocab_size": [259, 300, 511, 960],
        "vocab_multiple": [1, 2, 8, 24],
        "layers": [1, 60],
        "mlp": ["swiglu", "relu"],
        "attention": ["multi_query", "multi_head"],
    },
    "train": {
        "batch_size": [1, 2, 6, 7, 24, 96, [[0, 3], [5, 8]]],
        "micro_batch": [0, 0, 1, 2, 3],
        "compute_dtype": ["auto", "auto", "bfloat16", "float16"],
    },
    "finetune": {"checkpoint": ["runs/a"], "lora_rank": [0, 0, 0, 4]},
}
ROUNDS = 400


def test_advice_that_is_followed_literally_is_accepted():
    """Each error names overrides; with them, the same check passes or finds another error, and soon ends."""
    draw, followed = random.Random(12), 0
    for _ in range(ROUNDS):
        sections = {
            section: {name: draw.choice(values) for name, values in fields.items()} for section, fields in KINDS.items()
        }
        target = draw.choice(["CPU", "GPU", "Ascend"])
        overrides, complaints = [], set()
        while True:
            try:
                settings = with_overrides(sections, overrides)
                check_layout(settings, layout_of(settings, target), placements)
                break
            except ValidationError as error:  # the settings contradict each other
                message = f"{error.errors()[0]['loc'][0]}.{error.errors()[0]['msg'].removeprefix('Value error, ')}"
            except UserError as refusal:
                message = str(refusal)
            assert message not in complaints, f"{sections} {overrides}: {message}"
            complaints.add(message)
            overrides += advised(message)
            followed += 1
            assert len(complaints) < 6, complaints
    assert followed > ROUNDS / 2


def with_overrides(sections, overrides):
    values = {section: dict(fields) for section, fields in sections.items()}
    for override in overrides:
        name, _, text = override.partition("=")
        section, key = name.split(".")
        values[section][key] = yaml.safe_load(text)
    return Settings.model_validate(values)


def advised(message):
    """The overrides that a message names after "set", or the one that it means by "set it to"."""
    if found := re.search(r"set ((?:\w+\.\w+=\S+)(?: and \w+\.\w+=\S+)*)", message):
        return found.group(1).split(" and ")
    subject, value = re.match(r"(\w+\.\w+)", message).group(1), re.search(r"set (?:\w+|it) to (\S+)", message).group(1)
    return [f"{subject}={value}"]

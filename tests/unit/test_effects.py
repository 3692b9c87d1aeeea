"""Settings without effect are told by one rule, which is closed: a new setting must say when it decides nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mindspore_palm.config import Settings
from mindspore_palm.effects import OFF, USELESS, USUAL_STEPS, notes, print_notes
from mindspore_palm.settings import describe, load_settings, settings_to_yaml
from mindspore_palm.train.spikes import MIN_STEPS

EVERY_YAML = sorted((Path(__file__).resolve().parents[2] / "yaml").glob("*.yaml"))
EVERY_SETTING = {
    f"{section}.{name}" for section, group in Settings.model_fields.items() for name in group.annotation.model_fields
}
SPIKES = ("train.spikes=palm", "train.steps=1000")

# The setting, what goes with it so that it has no effect, and what goes with it so that it has.
CASES = [
    (
        "model.preset=palm_tiny",
        "model.layers=2 model.d_model=64 model.heads=2 model.head_dim=16 model.d_ff=128 model.vocab_size=300",
        "model.layers=2",
    ),
    ("model.position_rows=300", "", "model.position=learned"),
    ("optimizer.learning_rate=3", "", "optimizer.schedule=constant"),
    ("optimizer.warmup_steps=10", "optimizer.schedule=palm", "optimizer.schedule=constant"),
    ("optimizer.warmup_steps=101", "optimizer.schedule=cosine train.steps=100", "optimizer.schedule=cosine"),
    ("optimizer.final_fraction=0.2", "optimizer.schedule=constant", "optimizer.schedule=cosine"),
    ("optimizer.final_fraction=0.2", "optimizer.schedule=palm", "optimizer.schedule=cosine"),
    (
        "optimizer.final_fraction=0.2",
        "optimizer.schedule=cosine optimizer.warmup_steps=100 train.steps=100",
        "optimizer.schedule=cosine optimizer.warmup_steps=99 train.steps=100",
    ),
    *[
        (f"optimizer.{setting}", "optimizer.name=adamw", "optimizer.name=adafactor")
        for setting in ("factored=true", "update_clip=2.0", "lr_squared_decay=true")
    ],
    *[
        (f"optimizer.adamw_{setting}", "optimizer.name=adafactor", "optimizer.name=adamw")
        for setting in ("beta1=0.8", "beta2=0.9", "eps=1e-6", "weight_decay=0.1")
    ],
    *[
        (f"optimizer.lion_{setting}", "optimizer.name=adamw", "optimizer.name=lion")
        for setting in ("beta1=0.8", "beta2=0.9", "weight_decay=0.1")
    ],
    ("data.path=a.txt", "data.mixture=[{path: b.txt, weight: 1}]", ""),
    ("data.text_field=body", "data.path=python-stdlib", "data.path=not_there.jsonl"),
    ("data.tokenizer=a.model", "finetune.checkpoint=runs/a", ""),
    ("data.tokenizer_megabytes=9", "data.tokenizer=a.model", ""),
    ("data.tokenizer_megabytes=9", "finetune.checkpoint=runs/a", ""),
    ("data.prepared=elsewhere", "finetune.checkpoint=runs/a", ""),
    ("train.batch_size=[[0, 8], [100, 16]]", "train.steps=100", "train.steps=101"),
    ("train.micro_batch=8", "train.batch_size=8", "train.batch_size=16"),
    ("train.micro_batch=8", "train.batch_size=[[0, 8], [5, 8]]", "train.batch_size=[[0, 8], [5, 16]]"),
    ("train.tf32=true", "train.device=CPU", "train.device=GPU"),
    ("train.tf32=true", "train.device=Ascend", "train.device=auto"),
    ("train.loss_scale=1024.0", "train.compute_dtype=auto", "train.compute_dtype=float16"),
    ("train.loss_scale_window=10", "train.compute_dtype=float32", "train.compute_dtype=float16"),
    (
        "train.loss_scale_window=101",
        "train.compute_dtype=float16 train.steps=100",
        "train.compute_dtype=float16 train.steps=101",
    ),
    ("train.eval_every=200", "train.steps=100", "train.steps=1000"),
    ("train.eval_every=100", "train.steps=100", "train.steps=101"),
    ("train.eval_sequences=4", "train.eval_every=0", "train.eval_every=10"),
    ("train.checkpoint_every=50", "train.steps=20", "train.steps=100"),
    ("train.keep_last=2", "train.checkpoint_every=0", ""),
    ("train.keep_every=150", "train.checkpoint_every=100", "train.checkpoint_every=50"),
    ("train.keep_every=100", "train.checkpoint_every=0", ""),
    ("train.keep_every=70", "train.checkpoint_every=100 train.steps=600", "train.checkpoint_every=10"),
    ("train.checkpoint_in_background=false", "train.checkpoint_every=0", ""),
    ("train.spikes=palm", "train.steps=18", "train.steps=19"),
    *[
        (f"train.spike_{setting}", "train.spikes=off", " ".join(SPIKES))
        for setting in (
            "window=64",
            "deviations=5.0",
            "steps=2",
            "look_back=50",
            "skip=100",
            "skip_most=600",
            "tries=2",
        )
    ],
    ("train.spike_window=2000", " ".join(SPIKES), "train.spikes=palm train.steps=3000"),
    ("train.spike_skip_most=600", f"{' '.join(SPIKES)} train.spike_tries=1", " ".join(SPIKES)),
    *[
        (f"finetune.{setting}", "", "finetune.checkpoint=runs/a finetune.lora_rank=4")
        for setting in ("prompt_field=q", "target_field=a", "dropout=0.2", "lora_alpha=8")
    ],
    ("finetune.lora_alpha=8", "finetune.checkpoint=runs/a", "finetune.checkpoint=runs/a finetune.lora_rank=4"),
    *[
        (f"parallel.{setting}", "", "parallel.stages=2")
        for setting in ("interleave=2", "schedule=gpipe", "stage_layers=[1,2]")
    ],
    *[
        ("parallel.reduce_gradients=per_step", useless, useful)
        for useful in ["train.micro_batch=8 train.batch_size=16 parallel.data=2"]
        for useless in ("", "parallel.data=2", "parallel.model=2 train.micro_batch=8 train.batch_size=16")
    ],
    ("parallel.reduce_dtype=compute_dtype", "", "parallel.data=2"),
    ("parallel.reduce_dtype=compute_dtype", "parallel.data=2 train.compute_dtype=float32", "parallel.data=2"),
    ("parallel.strategy=data", "", "parallel.model=2"),
    ("parallel.strategy=data", "parallel.data=2", "parallel.model=2"),
    ("parallel.strategy=model", "parallel.model=2", "parallel.data=2"),
    ("parallel.shard_weights=all", "", "parallel.pods=2"),
    ("parallel.shard_weights=pod", "parallel.model=2", "parallel.data=2"),
    ("parallel.shard_weights=all", "parallel.data=2", "parallel.data=2 parallel.pods=2"),
    ("parallel.shard_weights=all", "parallel.data=2 parallel.strategy=model", "parallel.data=2 parallel.pods=2"),
]


def said_of(overrides):
    """The names of the settings that the notes are about."""
    settings, origins = load_settings(None, overrides)
    return {re.match(r"(\w+\.\w+) = ", note).group(1): note for note in notes(settings, origins)}


def test_every_setting_says_when_it_has_no_effect():
    assert set(USELESS) == EVERY_SETTING
    assert set(OFF) <= EVERY_SETTING


def test_every_condition_has_a_case():
    refused = {"finetune.lora_rank"}  # without a checkpoint, by config.py
    conditional = {name for name, why in USELESS.items() if why is not None}
    assert conditional - refused == {setting.split("=")[0] for setting, _, _ in CASES}


@pytest.mark.parametrize(("setting", "useless", "useful"), CASES, ids=[f"{a} {b}".strip() for a, b, _ in CASES])
def test_a_setting_without_effect_is_named_with_the_reason(setting, useless, useful):
    name = setting.split("=")[0]
    note = said_of([*split(useless), setting]).get(name, "")
    assert f"(override {setting})" in note and note.split("): ")[1]
    assert name not in said_of([*split(useful), setting])


def split(overrides):
    """Overrides of a line; a list in one of them holds spaces."""
    return re.split(r" (?=\w+\.\w+=)", overrides) if overrides else []


@pytest.mark.parametrize("name", OFF)
def test_a_value_that_asks_for_nothing_is_never_noted(name):
    text = {False: "false"}.get(OFF[name], OFF[name]) if isinstance(OFF[name], bool) else OFF[name]
    for other in ([], ["optimizer.name=adamw"], ["train.steps=1"]):
        assert name not in said_of([*other, f"{name}={text}"])


@pytest.mark.parametrize("file", EVERY_YAML, ids=[file.name for file in EVERY_YAML])
def test_the_files_of_the_project_have_nothing_without_effect(file):
    assert notes(*load_settings(file)) == []


def test_the_config_of_a_run_states_defaults_without_notes(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(settings_to_yaml(Settings()))
    assert notes(*load_settings(file)) == []
    file.write_text("optimizer: {adamw_beta1: 0.8}\ntrain: {spike_tries: 3}")
    (note,) = notes(*load_settings(file))
    assert note.startswith(f"optimizer.adamw_beta1 = 0.8 ({file}): no effect, as optimizer.name = adafactor")


def test_an_override_that_another_one_replaces_is_named():
    overrides = ["train.steps=5", "train.seed=1", "train.steps=6"]
    settings, origins = load_settings(None, overrides)
    assert notes(settings, origins, overrides) == ["train.steps=5 has no effect: train.steps=6 comes after it"]
    assert notes(settings, origins, ["train.steps=6", "train.steps=6"]) == []


def test_fields_of_a_folder_are_looked_for_in_it(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").touch()
    assert "data.text_field" in said_of([f"data.path={tmp_path}", "data.text_field=body"])
    assert "data.text_field" in said_of([f"data.path={tmp_path}/*.txt", "data.text_field=body"])
    (tmp_path / "deep" / "b.jsonl").touch()
    assert "data.text_field" not in said_of([f"data.path={tmp_path}", "data.text_field=body"])
    assert "data.text_field" not in said_of([f"data.path={tmp_path}/**", "data.text_field=body"])


def test_notes_are_printed_once_of_all_processes(monkeypatch, capsys):
    settings, origins = load_settings(None, ["optimizer.warmup_steps=5"])
    print_notes(settings, origins)
    assert capsys.readouterr().out.startswith("note: optimizer.warmup_steps = 5")
    for name, value in (("MINDSPORE_PALM_LAUNCHER", "1"), ("MS_ROLE", "MS_SCHED")):
        with monkeypatch.context() as context:
            context.setenv(name, value)
            print_notes(settings, origins)
    with monkeypatch.context() as context:
        context.setenv("MS_WORKER_NUM", "2")
        context.setenv("RANK_ID", "1")
        print_notes(settings, origins)
    assert capsys.readouterr().out == ""


def test_print_config_says_it_beside_the_setting():
    lines = describe(*load_settings(None, ["optimizer.warmup_steps=5"])).splitlines()
    (line,) = [line for line in lines if "warmup_steps" in line]
    assert line.endswith(
        "# override optimizer.warmup_steps=5: no effect, as optimizer.schedule = palm; it is of "
        "optimizer.schedule=constant or cosine"
    )


def test_a_spike_needs_as_many_steps_as_the_watch_asks_for():
    assert USUAL_STEPS == MIN_STEPS

"""Kinds of values that every setting has, by its type and bounds, and combinations in which every two of them meet."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Literal, get_args, get_origin

from finders.all_pairs import all_pairs

from mindspore_palm.config import Settings

SEED = int(os.environ.get("FINDER_SEED", "0"))

# The smallest network that trains, and a run of three steps: what a setting has where its kind is "not written".
TINY = {
    "model.layers": 1,
    "model.d_model": 16,
    "model.heads": 2,
    "model.head_dim": 8,
    "model.d_ff": 32,
    "model.vocab_size": 300,
    "data.seq_len": 16,
    "data.path": "text.txt",
    "data.prepared": "prepared",
    "train.steps": 3,
    "train.batch_size": 4,
    "train.peak_tflops": 1,
    "train.output": "out",
}
SIZES = ("layers", "d_model", "heads", "head_dim", "d_ff", "vocab_size")
# Where a model does not say which values make sense: kinds of valid ones, beside "not written".
SAMPLES = {
    "model.preset": ["palm_tiny"],
    "model.vocab_size": [301, 320],
    "model.position_rows": [0, 16],
    "data.path": ["text.txt", "documents.jsonl", "*.txt"],
    "data.mixture": [[{"path": "text.txt", "weight": 3.0}, {"path": "documents.jsonl", "weight": 1.0}]],
    "data.text_field": ["text"],
    "data.tokenizer": ["model/tokenizer.model"],
    "data.prepared": ["elsewhere/ünï"],
    "data.validation_fraction": [0.1],
    "data.seq_len": [8, 15],  # of two, a text has so many sequences that it is scored for minutes
    "train.batch_size": [2, [[0, 2], [2, 4]], [[0, 4]]],
    "train.loss_scale": [1.0, 2.0**40],
    "train.output": ["a b/c"],
    "train.trackers": [["tensorboard"]],  # the others are extras
    "finetune.prompt_field": ["q"],
    "finetune.target_field": ["a"],
    "parallel.stages": [2],
    "parallel.interleave": [2],
    "parallel.stage_layers": [[1, 1], [2]],
    "parallel.pods": [2],
    "parallel.data": [2],
    "parallel.model": [2],
}
ALONE = ("finetune.checkpoint",)  # decides what the rest means, so each of its kinds has an array of its own
HUGE = 2**62


@dataclass(frozen=True)
class Field:
    """A setting with its kinds of values."""

    name: str
    valid: tuple
    """Each accepted by itself."""
    odd: tuple
    """Wrong, or far beyond what fits."""


def bound(field, *names):
    """A lower bound of a number, and whether it belongs to what is valid."""
    for metadata in field.metadata:
        for name in names:
            if getattr(metadata, name, None) is not None:
                return getattr(metadata, name)
    return None


def kinds(name, field):
    """A setting's kinds of values, by its type and bounds."""
    given = SAMPLES.get(name)
    if get_origin(field.annotation) is Literal:
        choices = get_args(field.annotation)
        return Field(name, tuple(given or (c for c in choices if c != "")), ("nonsense", "", 3, None, [choices[0]]))
    if field.annotation is bool:
        return Field(name, (True, False), ("maybe", "", 2, None, [True]))
    if field.annotation is str:
        odd = ("", "  ", "nowhere", "/dev/null", "/proc/nowhere", "~nobody/x", "x" * 300, "ünï 漢字", "a\0b", "..", "-")
        return Field(name, tuple(given or ()), odd)
    wrong = ("x", "", None, [], {"a": 1}, True, float("nan"), float("inf"), "1e3", -1)
    if field.annotation is int:
        least = bound(field, "ge") if bound(field, "ge") is not None else bound(field, "gt") + 1
        return Field(name, tuple(given or (least, least + 1)), (*wrong, 0.5, HUGE, 2**63, 10**400, least - 1))
    if field.annotation is float:
        least = bound(field, "ge") if bound(field, "ge") is not None else 1e-9
        return Field(name, tuple(given or (least, 0.5)), (*wrong, 1e30, 1e-300, 1.0, 10**400))
    assert given, f"{name} is of a type that nobody has named kinds of: write some into SAMPLES"
    return Field(name, tuple(given), (*wrong, 0.5, HUGE, [[0, 0]], [[5, 1]], [[0, HUGE]], [[0, 1], [0, 2]], [1]))


FIELDS = [
    kinds(f"{section}.{name}", field)
    for section, group in Settings.model_fields.items()
    for name, field in group.annotation.model_fields.items()
]


def rows(fields, seed=SEED):
    """Overrides of each row of a covering array over valid values and "not written"."""
    table = all_pairs([1 + len(field.valid) for field in fields], seed)
    return [
        {field.name: field.valid[kind - 1] for field, kind in zip(fields, row, strict=True) if kind} for row in table
    ]


TEXT_FIELDS = [field for field in FIELDS if field.name not in (*ALONE, "finetune.lora_rank")]  # refused without one
TEXT_ROWS = rows(TEXT_FIELDS)
PAIR_FIELDS = [
    field
    for field in FIELDS
    if field.name not in (*ALONE, "data.path", "data.mixture", "data.tokenizer")  # the last two are refused
    and field.name.partition(".")[2] not in ("preset", *SIZES)
    and (field.name == "model.vocab_multiple" or not field.name.startswith("model."))
]
PAIR_ROWS = [{**row, "finetune.checkpoint": "model", "data.path": "pairs.jsonl"} for row in rows(PAIR_FIELDS)]
ODD = [{field.name: value} for field in FIELDS for value in field.odd]


def overrides(values):
    """As a command line has them."""
    return [f"{name}={json.dumps(v) if isinstance(v, (list, dict, bool)) else v}" for name, v in values.items()]

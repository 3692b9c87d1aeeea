"""All settings over their kinds of values: each run trains two steps or is refused in a sentence; no traceback.

Values come from the models of the settings, so that a new setting is covered without anybody's thinking of it. Valid
values are combined so that every two of them meet (``all_pairs``). Values that are wrong or huge come one at a time, as
each would hide all others. What a refusal advises is followed literally.

``python -m pytest -m slow -s tests/finders/test_settings.py`` trains them all; the default trains a few.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from finders.all_pairs import all_pairs

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.model.initial import placements
from mindspore_palm.parallel.check import check_layout, layout_of
from mindspore_palm.settings import load_settings
from mindspore_palm.train.memory import check_memory

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(__file__).with_name("two_steps.py")
SEED = int(os.environ.get("FINDER_SEED", "0"))
TRAINED_BY_DEFAULT = 2
LIMIT = 300  # seconds for a run
MOST_WORKERS = 2  # that are started for a run; its step on a larger mesh is compiled, as for one rank of it
ROUNDS = 8  # refusals with advice that are followed

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
    "data.path": ["text.txt", "documents.jsonl", "*.txt"],
    "data.text_field": ["text"],
    "data.tokenizer": ["model/tokenizer.model"],
    "data.prepared": ["elsewhere/ünï"],
    "data.validation_fraction": [0.1],
    "data.seq_len": [8, 15],  # of two, a text has so many sequences that it is scored for minutes
    "train.batch_size": [2, [[0, 2], [2, 4]], [[0, 4]]],
    "train.output": ["a b/c"],
    "finetune.prompt_field": ["q"],
    "finetune.target_field": ["a"],
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
    if field.name not in (*ALONE, "data.path", "data.tokenizer")  # the latter is refused
    and field.name.partition(".")[2] not in ("preset", *SIZES)
    and (field.name == "model.vocab_multiple" or not field.name.startswith("model."))
]
PAIR_ROWS = [{**row, "finetune.checkpoint": "model", "data.path": "pairs.jsonl"} for row in rows(PAIR_FIELDS)]
ODD = [{field.name: value} for field in FIELDS for value in field.odd]


def overrides(values):
    """As a command line has them."""
    return [f"{name}={json.dumps(v) if isinstance(v, (list, dict, bool)) else v}" for name, v in values.items()]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with texts, pairs, and a model that was trained on one of them."""
    home = tmp_path_factory.mktemp("finder")
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(200)]
    lines = [" ".join(draw.choices(words, k=12)) for _ in range(200)]
    (home / "text.txt").write_text("\n".join(lines))
    (home / "documents.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    pairs = [{"prompt": f"{n}+1=", "target": str(n + 1), "q": f"{n}", "a": str(n)} for n in range(200)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    outcome, said = train(home, {})
    assert outcome == "trained", said
    shutil.copytree(home / "kept" / "final", home / "model")
    return home


def train(home, values):
    """Has a process of its own train two steps: how it ended, and what it said last."""
    values = {**TINY, **values}
    if any("\0" in str(value) for value in values.values()):
        return "refused", "no command line holds a NUL"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [COMMAND, "--overwrite"]
    if not (home / "model").exists():
        command, values["train.output"] = [ROOT / "run" / "train.py"], "kept"
    if load_settings(None, overrides(values))[0].parallel.devices > MOST_WORKERS:
        command = [ROOT / "run" / "dry_run.py"]  # compiles the step of one rank
    try:
        done = subprocess.run(
            [sys.executable, *map(str, command), *overrides(values)],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        return "fault", f"not ended after {LIMIT} s"
    said = done.stderr[-3000:]
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if "Traceback" in done.stderr + done.stdout:
        return "fault", said
    if done.returncode in (0, 130):
        return "trained", done.stdout
    if done.returncode == 2 and len(sentences) == 1:
        return "refused", sentences[0].removeprefix("error: ")
    return "fault", f"exit code {done.returncode}: {said}"


def checked(values):
    """The sentence by which settings are refused before anything is started; None where they are not."""
    try:
        settings, _ = load_settings(None, overrides({**TINY, **values}))
        target = "CPU"
        layout = layout_of(settings, target)
        check_layout(settings, layout, placements)
        check_memory(settings, layout)
    except UserError as refusal:
        assert str(refusal).count("\n") <= 1, refusal
        return str(refusal)
    return None


def advised(sentence):
    """Settings by which a refusal says that it is mended; none where it names no values."""
    found = re.search(r"set ((?:\w+\.\w+=\S+)(?: and \w+\.\w+=\S+)*)", sentence)
    if found:
        return dict(part.split("=", 1) for part in found.group(1).split(" and "))
    subject = re.search(r"(?:^|: )(\w+\.\w+)", sentence)
    found = re.search(r"set ((?:\w+\.)?\w+) to (-?[\d.]*\d)\b", sentence)
    if not (subject and found):
        return {}
    name = subject.group(1) if found.group(1) == "it" else found.group(1)
    return {name if "." in name else f"{subject.group(1).split('.')[0]}.{name}": found.group(2)}


def settled(values, run):
    """Follows advice until a run is accepted, or is refused without any: all refusals, and how the last run ended."""
    refusals = []
    while True:
        outcome, said = run(values)
        if outcome != "refused":
            return refusals, outcome, said
        assert said not in refusals, f"following the advice of {refusals[-1]!r} leads back to it: {values}"
        refusals.append(said)
        advice = advised(said)
        if not advice or len(refusals) > ROUNDS:
            return refusals, outcome, said
        values = {**values, **advice}


def quickly(values):
    refusal = checked(values)
    return ("refused", refusal) if refusal else ("accepted", "")


def checked_then_trained(home):
    """A run whose refusals before it starts are found in this process, which takes no seconds."""

    def run(values):
        refusal = checked(values)
        return ("refused", refusal) if refusal else train(home, values)

    return run


def test_every_two_values_of_a_covering_array_meet():
    sizes = [2, 3, 5, 2, 4, 2, 3]
    table = all_pairs(sizes)
    for a, b in combinations(range(len(sizes)), 2):
        assert len({(row[a], row[b]) for row in table}) == sizes[a] * sizes[b]
    assert len(table) < 2 * 5 * 4


def test_each_valid_value_is_valid():
    """Or pairs of values that are none would be all that there is."""
    for field in FIELDS:
        for value in field.valid:
            settings = {field.name: value, "finetune.checkpoint": "model"}  # which lora_rank wants
            refusal = quickly(settings)[1]
            assert not refusal or advised(refusal), (field.name, value, refusal)


def test_wrong_values_are_refused_in_a_sentence_or_are_right(capsys):
    outcomes = [quickly(values)[0] for values in ODD]
    with capsys.disabled():
        print(f"\n{len(ODD)} odd values: {outcomes.count('refused')} refused, {outcomes.count('accepted')} accepted")
    assert outcomes.count("refused") > len(ODD) / 2


def test_pairs_of_values_are_accepted_or_refused_in_a_sentence_whose_advice_helps(capsys):
    outcomes = [settled(values, quickly) for values in TEXT_ROWS + PAIR_ROWS]
    ends = [end for _, end, _ in outcomes]
    first = sum(bool(refusals) for refusals, _, _ in outcomes)
    with capsys.disabled():
        print(f"\n{len(ends)} combinations: {first} refused at first, {ends.count('accepted')} accepted by advice")
    assert not [refusals[-1] for refusals, end, _ in outcomes if end != "accepted"]


def test_a_few_combinations_train(home):
    draw = random.Random(SEED)
    one_device = [row for row in TEXT_ROWS if not any(name.startswith("parallel.") for name in row)] or TEXT_ROWS
    for values in draw.sample(one_device, min(TRAINED_BY_DEFAULT, len(one_device))):
        values = {**values, "parallel.pods": 1, "parallel.data": 1, "parallel.model": 1}
        _, outcome, said = settled(values, checked_then_trained(home))
        assert outcome != "fault", f"{values}: {said}"


@pytest.mark.slow
def test_all_of_them_train_or_are_refused(home, capsys):
    """Combinations first as they are and then by advice; odd values that the settings themselves accept."""
    accepted = [values for values in ODD if not checked(values)]
    counts, faults, refused = {"trained": 0, "refused": 0, "fault": 0}, [], []
    cases = [*TEXT_ROWS, *PAIR_ROWS, *accepted]
    followed = 0
    for number, values in enumerate(cases):
        try:
            refusals, outcome, said = settled(values, checked_then_trained(home))
        except AssertionError as error:
            refusals, outcome, said = [], "fault", str(error)
        counts[outcome] += 1
        followed += bool(refusals) and outcome == "trained"
        faults += [(values, said)] * (outcome == "fault")
        refused += [said] * (outcome == "refused")
        for name in ("out", "a b", "elsewhere"):
            shutil.rmtree(home / name, ignore_errors=True)
        with capsys.disabled():
            print(f"{number + 1}/{len(cases)} {outcome}: {said.splitlines()[-1][:150] if said else ''}", flush=True)
    with capsys.disabled():
        print(
            f"\n{len(cases)} combinations: {counts['trained']} trained ({followed} after a refusal whose advice was "
            f"followed), {counts['refused']} refused, {counts['fault']} faults; {len(ODD) - len(accepted)} odd values "
            "refused before"
        )
        for sentence in sorted(set(refused)):
            print(f"  {sentence}")
    assert not faults, "\n\n".join(f"{values}\n{said}" for values, said in faults)

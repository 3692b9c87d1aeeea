"""All settings over their kinds of values: each run trains two steps or is refused in a sentence; no traceback.

Values come from the models of the settings, so that a new setting is covered without anybody's thinking of it. Valid
values are combined so that every two of them meet (``all_pairs``). Values that are wrong or huge come one at a time, as
each would hide all others. What a refusal advises is followed literally.

``python -m pytest -m slow -s tests/finders/test_settings.py`` trains them all; the default trains a few.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import mindspore as ms
import pytest
from finders import two_steps
from finders.all_pairs import all_pairs
from finders.kinds import FIELDS, ODD, PAIR_ROWS, SEED, TEXT_ROWS, TINY, overrides

from mindspore_palm.config import FinetuneConfig
from mindspore_palm.cost.memory import check_memory
from mindspore_palm.dry_run.compile import compile_rank
from mindspore_palm.errors import UserError, run_command
from mindspore_palm.model.weights import placements
from mindspore_palm.parallel import host
from mindspore_palm.parallel.check import check_layout, layout_of
from mindspore_palm.parallel.context import set_rank
from mindspore_palm.settings import load_settings
from mindspore_palm.train import loop

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(__file__).with_name("two_steps.py")
TRAINED_BY_DEFAULT = 2
LIMIT = 300  # seconds for a run
EVERY_PROCESS = 12  # of so many combinations, one is trained in processes of its own as well
MOST_WORKERS = 2  # that are started for a run; its step on a larger mesh is compiled, as for one rank of it
ROUNDS = 8  # refusals with advice that are followed


@pytest.fixture(scope="module")
def home(device, tmp_path_factory):
    """A folder with texts, pairs, and a model that was trained on one of them."""
    home = tmp_path_factory.mktemp("finder")
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(200)]
    lines = [" ".join(draw.choices(words, k=12)) for _ in range(200)]
    (home / "text.txt").write_text("\n".join(lines))
    (home / "documents.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    pairs = [{"prompt": f"{n}+1=", "target": str(n + 1), "q": f"{n}", "a": str(n)} for n in range(200)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    outcome, said = train(home, {"train.output": "kept", "train.steps": two_steps.STEPS})
    assert outcome == "trained", said
    shutil.copytree(home / "kept" / "final", home / "model")
    return home


def train(home, values):
    """Trains two steps, or compiles a step for a mesh, in this process: how that ended, and what was said last.

    A fault counts if it is one in a process of its own as well.
    """
    values = {**TINY, **values}
    if any("\0" in str(value) for value in values.values()):
        return "refused", "no command line holds a NUL"
    settings = load_settings(None, overrides(values))[0]
    said = io.StringIO()
    here = os.getcwd()
    os.chdir(home)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = compile_here(settings) if settings.parallel.devices > 1 else train_here(values)
    except Exception:
        return train_alone(home, values)
    finally:
        os.chdir(here)
    return verdict(code, said.getvalue()) if code in (0, 2) else train_alone(home, values)


class Enough(BaseException):
    """Two steps are done."""


def train_here(values):
    """The exit code of the command in this process, which is left after two steps."""
    spec = importlib.util.spec_from_file_location("run_train", ROOT / "run" / "train.py")
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    rows = []

    def counted(*arguments, **named):
        rows.append(make_row(*arguments, **named))
        if len(rows) == two_steps.STEPS < values["train.steps"]:
            raise Enough
        return rows[-1]

    make_row, argv = loop.MetricsRow, sys.argv
    loop.MetricsRow, sys.argv = counted, ["train.py", "--overwrite", *overrides(values)]
    try:
        return run_command(command.main)
    except Enough:
        return 0
    finally:
        loop.MetricsRow, sys.argv = make_row, argv


def compile_here(settings):
    """The step of the last rank of a mesh, compiled; 0."""
    alone = settings.model_copy(update={"finetune": FinetuneConfig()})  # whose weights would be read
    try:
        compile_rank(alone, "GPU", settings.parallel.devices - 1)
        return 0
    finally:
        set_rank(0)
        host.uninstall()
        ms.reset_auto_parallel_context()  # which MindSpore leaves as it is when it refuses a network


def train_alone(home, values):
    """The same in a process of its own, with workers where there are two devices."""
    values = {**TINY, **values}
    command = [COMMAND, "--overwrite"]
    if load_settings(None, overrides(values))[0].parallel.devices > MOST_WORKERS:
        command = [ROOT / "run" / "dry_run.py"]  # compiles the step of one rank
    try:
        done = subprocess.run(
            [sys.executable, *map(str, command), *overrides(values)],
            cwd=home,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        return "fault", f"not ended after {LIMIT} s"
    return verdict(done.returncode, done.stdout + done.stderr)


def verdict(code, said):
    sentences = [line for line in said.splitlines() if line.startswith("error: ")]
    if "Traceback" in said:
        return "fault", said[-3000:]
    if code in (0, 130):
        return "trained", said
    if code == 2 and len(sentences) == 1:
        return "refused", sentences[0].removeprefix("error: ")
    return "fault", f"exit code {code}: {said[-3000:]}"


def checked(values):
    """The sentence by which settings are refused before anything is started; None where they are not."""
    try:
        settings, _ = load_settings(None, overrides({**TINY, **values}))
        place = layout_of(settings, "CPU")
        check_layout(settings, place, placements)
        check_memory(settings, place)
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


def checked_then(start, home):
    """A run whose refusals before it starts are found in this process, which takes no seconds."""

    def run(values):
        refusal = checked(values)
        return ("refused", refusal) if refusal else start(home, values)

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
        _, outcome, said = settled(values, checked_then(train, home))
        assert outcome != "fault", f"{values}: {said}"


@pytest.mark.slow
def test_all_of_them_train_or_are_refused(home, capsys):
    """Combinations first as they are and then by advice; odd values that the settings themselves accept."""
    accepted = [values for values in ODD if not checked(values)]
    counts, faults, refused = {"trained": 0, "refused": 0, "fault": 0}, [], []
    cases = [*TEXT_ROWS, *PAIR_ROWS, *accepted]
    followed, started = 0, 0
    for number, values in enumerate(cases):
        try:
            refusals, outcome, said = settled(values, checked_then(train, home))
            if outcome == "trained" and number % EVERY_PROCESS == 0:
                started += 1
                refusals, outcome, said = settled(values, checked_then(train_alone, home))
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
            f"followed; {started} of them again in processes of their own), {counts['refused']} refused, "
            f"{counts['fault']} faults; {len(ODD) - len(accepted)} odd values refused before"
        )
        for sentence in sorted(set(refused)):
            print(f"  {sentence}")
    assert not faults, "\n\n".join(f"{values}\n{said}" for values, said in faults)

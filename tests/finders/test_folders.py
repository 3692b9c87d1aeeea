"""Mutations of a run's folder, as people, tools and crashes make them: it resumes to the same bits, or says why not.

FOLDERS=200 tries so many instead of the sample; FOLDERS_SEED draws others. What was not the run's is never deleted.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints.command import rows_of
from checkpoints.in_process import trainer, write_text

from mindspore_palm import load
from mindspore_palm.errors import UserError
from mindspore_palm.train import start
from mindspore_palm.train.evaluate import Evaluation
from mindspore_palm.train.step import StepResult

SAMPLE, FULL = 22, 200
SEED = int(os.environ.get("FOLDERS_SEED", "20220405"))
STEPS = 12
FOREIGN = ["notes.txt", ".DS_Store", "Thumbs.db", "desktop.ini", "config.yaml~", ".config.yaml.swp", "run.zip", "Final"]
FOREIGN += [
    "step_000010 (copy)",
    "step_000010.zip",
    ".nfs000000000001",
    "step_10",
    "old.tmp",
    "metrics (1).csv",
    "\u2028",
]
OWN_FILES = ["metrics.csv", "loss.png", "config.yaml", "lock", "rewinds.json", "adapter.safetensors", "checkpoints"]
OWN_FILES += ["tensorboard", "final", "final/model.safetensors", "final/config.yaml", "final/tokenizer.model"]
OWN_FILES += [f"checkpoints/{step}" for step in ("step_000005", "step_000010")]
FILES = ("manifest.json", "state.json", "config.yaml", "tokenizer.model", "rank_0.safetensors")
OWN_FILES += [f"checkpoints/{step}/{name}" for step in ("step_000005", "step_000010") for name in FILES]
Mutation = Callable[["Case"], str]


class Case:
    """A copy of a run of ten steps that is mutated; beside it, other runs to take pieces from."""

    def __init__(self, home: Path, number: int) -> None:
        self.home, self.draw = home, random.Random(SEED * 1000 + number)
        self.away = home / f"away_{number}"
        self.away.mkdir()
        self.run = home / f"case_{number}"
        shutil.copytree(home / "base", self.run)
        self.kept: dict[Path, bytes] = {}
        for folder in ("", "checkpoints", "tensorboard", "final", "checkpoints/step_000005"):
            self.write(self.run / folder / self.draw.choice(FOREIGN[:4]))

    def write(self, path: Path) -> None:
        """A file that is not the run's."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.kept[path] = f"mine: {len(self.kept)} {self.draw.random()}".encode()
        path.write_bytes(self.kept[path])

    def pick(self, *kinds: str) -> Path:
        """Something of the run's that is there."""
        there = [self.run / name for name in OWN_FILES if os.path.lexists(self.run / name)]
        fits = {"file": lambda p: p.is_file() and p.name != "lock", "folder": Path.is_dir}
        return self.draw.choice([path for path in there if not kinds or any(fits[kind](path) for kind in kinds)])

    def lose(self, path: Path) -> None:
        """What a user deletes is not kept."""
        self.kept = {kept: content for kept, content in self.kept.items() if path not in (kept, *kept.parents)}
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def move(self, path: Path, target: Path) -> None:
        """What is moved with all that is in it is looked for there."""
        path.rename(target)
        self.kept = {
            (target / kept.relative_to(path) if path in kept.parents else kept): content
            for kept, content in self.kept.items()
        }


def foreign_file(case):
    folder = case.draw.choice([case.run, *(p for p in (case.pick("folder"),))])
    case.write(folder / case.draw.choice(FOREIGN))
    return f"a file in {folder.name}"


def foreign_folder(case):
    folder = case.pick("folder")
    name = case.draw.choice(
        [".ipynb_checkpoints", "plugins", "__pycache__", "step_000010 (copy)", "step_000007.bak", "x.tmp"]
    )
    case.write(folder / name / "rank_0.safetensors")
    return f"a folder in {folder.name}"


def missing(case):
    path = case.pick()
    case.lose(path)
    return f"{path.name} deleted"


def several_missing(case):
    for _ in range(3):
        missing(case)
    return "three things deleted"


def truncated(case):
    path = case.pick("file")
    content = path.read_bytes()
    path.write_bytes(content[: case.draw.choice([0, 1, len(content) // 2, max(0, len(content) - 1)])])
    return f"{path.name} truncated"


def altered(case):
    path = case.pick("file")
    content = bytearray(path.read_bytes() or b"x")
    content[case.draw.randrange(len(content))] ^= 1 << case.draw.randrange(8)
    path.write_bytes(bytes(content))
    return f"{path.name} altered by a bit"


def garbage(case):
    path = case.pick("file")
    path.write_bytes(case.draw.choice([b"\0" * 500, b"\xff\xfe" * 50, b"null", b"[]", b"{}", b"- a\n", b"a,b\n1,2\n"]))
    return f"{path.name} is something else"


def grown(case):
    path = case.pick("file")
    path.write_bytes(path.read_bytes() + case.draw.choice([b"\n", b"\0" * 9, b"99,1,1,1\n"]))
    return f"{path.name} grown"


def line_ends(case):
    path = case.run / case.draw.choice(["metrics.csv", "config.yaml", "final/config.yaml"])
    content = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", case.draw.choice([b"\n", b"\r\n"]))
    path.write_bytes(case.draw.choice([b"", b"\xef\xbb\xbf"]) + content)
    return f"{path.name} saved by an editor"


def edited(case):
    path = case.run / case.draw.choice(["config.yaml", "final/config.yaml", "checkpoints/step_000010/config.yaml"])
    path.write_bytes(path.read_bytes().replace(b"seed: 0", b"seed: 7").replace(b"batch_size: 4", b"batch_size: 5"))
    return f"{path.parent.name}/config.yaml edited"


def rows_in_disorder(case):
    path = case.run / "metrics.csv"
    head, *rows = path.read_text().splitlines()
    change = case.draw.choice([lambda r: r[::-1], lambda r: r + r, lambda r: r[3:], lambda r: r[::2], lambda r: r[:4]])
    path.write_text("\n".join([head, *change(rows)]) + "\n")
    return "rows in disorder"


def swapped(case):
    one, other = (case.run / "checkpoints" / name for name in ("step_000005", "step_000010"))
    if not one.is_dir() or not other.is_dir():
        return missing(case)
    name = case.draw.choice(["", *FILES])
    if not (one / name).exists() or not (other / name).exists():
        return missing(case)
    case.move(one / name, case.run / "between")
    case.move(other / name, one / name)
    case.move(case.run / "between", other / name)
    return f"{name or 'checkpoints'} swapped"


def of_another(case):
    """Older, newer, or of another run."""
    source = case.home / case.draw.choice(["older", "newer", "other", "decided"])
    name = case.draw.choice(["final", "metrics.csv", "config.yaml", "tensorboard", "rewinds.json", "checkpoints"])
    if not (source / name).exists():
        name = "metrics.csv"
    if name == "checkpoints":
        step = case.draw.choice(sorted(path.name for path in (source / name).iterdir()))
        target = f"step_{case.draw.choice([3, 10, 15]):06d}"
        shutil.copytree(source / name / step, case.run / name / target, dirs_exist_ok=True)
    elif (source / name).is_dir():
        shutil.copytree(source / name, case.run / name, dirs_exist_ok=True)
    else:
        shutil.copy(source / name, case.run / name)
    return f"{name} of {source.name}"


def moved_and_linked(case):
    path = case.pick()
    target = case.away / path.name
    case.move(path, target)
    path.symlink_to(target)
    return f"{path.name} is a link"


def dangling(case):
    path = case.pick()
    case.lose(path)
    path.symlink_to(case.away / "nowhere")
    return f"{path.name} is a link to nothing"


def a_loop(case):
    path = case.pick()
    case.lose(path)
    path.symlink_to(path)
    return f"{path.name} is a link to itself"


def another_kind(case):
    path = case.pick()
    is_folder = path.is_dir()
    case.lose(path)
    if is_folder:
        case.write(path)
    else:
        case.write(path / "notes.txt")
    return f"{path.name} is a {'file' if is_folder else 'folder'}"


def a_pipe(case):
    path = case.draw.choice([case.run / "pipe", case.run / "checkpoints" / "step_000011", case.pick("file")])
    if os.path.lexists(path):
        case.lose(path)
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    return f"{path.name} is a pipe"


def permissions(case):
    path = case.pick()
    path.chmod(case.draw.choice([0o000, 0o444, 0o555]))
    return f"{path.name} has other permissions"


def other_case(case):
    path = case.pick()
    case.move(path, path.with_name(path.name.swapcase()))
    return f"{path.name} in another case"


def crashed(case):
    """What a process that was killed leaves behind."""
    source = case.run / "checkpoints" / "step_000010"
    ending = case.draw.choice([".tmp", ".gone.tmp", ".damaged", ".damaged.gone.tmp"])
    names = case.draw.sample(FILES, 2)
    step = case.draw.choice(["step_000011", "step_000010", "step_000005"])
    target = case.run / "checkpoints" / f"{step}{ending}"
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    for name in ("metrics.csv.12.tmp", "final.tmp/model.safetensors", "tensorboard.tmp/events.out.tfevents.1.x"):
        if case.draw.random() < 0.5:
            (case.run / name).parent.mkdir(exist_ok=True)
            (case.run / name).write_bytes(b"half")
    return f"left over: {step}{ending}"


MUTATIONS: list[Mutation] = [foreign_file, foreign_folder, missing, several_missing, truncated, altered, garbage, grown]
MUTATIONS += [line_ends, edited, rows_in_disorder, swapped, of_another, of_another, moved_and_linked, dangling, a_loop]
MUTATIONS += [another_kind, a_pipe, permissions, other_case, crashed]


@pytest.fixture
def home(tmp_path):
    write_text(tmp_path)
    return tmp_path


@pytest.fixture(params=[pytest.param("compiled", marks=pytest.mark.slow), "counting"])
def train(home, device, monkeypatch, capsys, request):
    if request.param == "counting":
        build = start.build_step

        def without_compiling(settings):
            palm, step = build(settings)
            return palm, CountingStep(step)

        monkeypatch.setattr(start, "build_step", without_compiling)
        monkeypatch.setattr(start, "Evaluator", CountingEvaluator)
    return trainer(home, monkeypatch, capsys)


@pytest.fixture
def runs(home, train):
    """The run that is mutated, the one that nobody touched, and others to take pieces from."""
    for name, arguments in {
        "older": ["train.steps=5"],
        "base": ["train.steps=10"],
        "newer": ["train.steps=15"],
        "other": ["train.steps=10", "train.seed=1"],
        "decided": ["train.steps=10", "--skip-batches", "2:3"],
        "straight": [f"train.steps={STEPS}"],
    }.items():
        assert train(name, *arguments)[0] == 0, name


def bits_of(run):
    return [
        (run / name).read_bytes()
        for name in ("final/model.safetensors", f"checkpoints/step_{STEPS:06d}/rank_0.safetensors")
    ]


def problem_of(case, home, result):
    """What the run did wrong; empty if it resumed to the same bits or said in a sentence why it does not."""
    code, out, err = result
    there = set(contents(case.run)) | set(contents(case.away))
    if lost := [str(path) for path, content in case.kept.items() if content not in there]:
        return f"deleted or changed: {lost}"
    if code == 2:
        is_sentence = err.startswith("error: ") and len(err) < 900 and err.count("\n") <= 5
        return "" if is_sentence else f"no sentence: {err}"
    if code:
        return f"exit code {code}: {err}"
    if bits_of(case.run) != bits_of(home / "straight"):
        return "other bits"
    ours, theirs = (
        {row["step"]: [value for name, value in row.items() if "validation" not in name] for row in rows_of(run)}
        for run in (case.run, home / "straight")
    )
    told = "metrics.csv lacks rows before that step" in out
    if any(ours[step] != theirs[step] for step in ours) or (ours.keys() != theirs.keys() and not told):
        return f"other rows: {sorted(map(int, ours))}"
    return ""


def opens(run):
    """The model of a run opens, or a sentence says why it does not."""
    try:
        load(run)
    except UserError as error:
        assert len(str(error)) < 900


def contents(folder):
    """Of all small files, wherever they were moved to together with what they lie in."""
    for top, _, names in os.walk(folder):
        for path in (Path(top) / name for name in names):
            if path.is_file() and path.stat().st_size < 99:
                yield path.read_bytes()


class CountingStep:
    """What stands in for a compiled step: it changes all state by batch and state, in no time."""

    def __init__(self, step):
        self.state = step.state

    def __call__(self, inputs, targets, tokens, keep, scale):
        mark = float(int(inputs.sum() * 31 + targets.sum()) % 997)
        for parameter in self.state:
            values = parameter.asnumpy()  # where it lies
            values[...] = values + 1 if values.dtype.kind == "i" else values * np.float32(0.9) + np.float32(mark / 1e4)
        return StepResult(mark, mark, 1.0, 0.01, False)


class CountingEvaluator:
    """What stands in for the evaluation on held-out text."""

    def __init__(self, palm, piece_bytes, nats=None):
        self.palm = palm

    def __call__(self, batches):
        value = float(abs(self.palm.embedding.asnumpy()).mean())
        return Evaluation(value, value, 1)


@pytest.mark.parametrize(
    "count", [SAMPLE, pytest.param(int(os.environ.get("FOLDERS", FULL)), marks=pytest.mark.slow, id="full")]
)
def test_a_mutated_folder_resumes_to_the_same_bits_or_is_refused_in_a_sentence(count, home, train, runs, request):
    said, problems = Counter(), []
    for number in range(count):
        case = Case(home, number)
        mutations = [MUTATIONS[5 * number % len(MUTATIONS)]]
        if case.draw.random() < 0.3:
            mutations.append(case.draw.choice(MUTATIONS))
        what = "?"
        try:
            what = ", ".join(mutate(case) for mutate in mutations)
            opens(case.run)
            more = ["--overwrite"] if case.draw.random() < 0.15 else []
            what += "".join(f", {word}" for word in more)
            result = train(case.run, f"train.steps={STEPS}", *more)
            problem = problem_of(case, home, result)
            said["resumed to the same bits" if result[0] == 0 else "refused in a sentence"] += not problem
        except (Exception, SystemExit) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            problems.append(f"{number}: {what}: {problem}")
        shutil.rmtree(case.run, ignore_errors=True)
        shutil.rmtree(case.away, ignore_errors=True)
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{count} folders: {', '.join(f'{n} {what}' for what, n in said.items())}, {len(problems)} faults")
    assert not problems, "\n".join(problems)

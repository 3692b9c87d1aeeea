"""The command ``palm``: a table of commands, which help shows; scripts are aliases; workers repeat what was called."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from mindspore_palm import invocation
from mindspore_palm.cli.palm import COMMANDS
from mindspore_palm.options import Parser
from mindspore_palm.settings import load_settings
from mindspore_palm.shipped import find_config, shipped_configs

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path for path in (ROOT / "run").glob("*.py") if path.stem != "checkout")
PROCESSOR_SECONDS = 0.3  # of help and of errors in arguments: what numpy or MindSpore alone would take


def palm(*words, folder=ROOT, options=(), **more):
    line = [sys.executable, *options, "-m", "mindspore_palm", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, **more)


def script(path, *words, folder=ROOT, options=()):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    line = [sys.executable, *options, str(path), *words]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_help_lists_the_commands_that_there_are():
    done = palm("--help")
    listed = re.findall(r"^  ([a-z-]+) {2,}\w", done.stdout.partition("commands:")[2].partition("examples:")[0], re.M)
    assert (done.returncode, done.stderr, listed) == (0, "", list(COMMANDS))
    named = set(re.findall(r"palm ([a-z-]+) ", done.stdout.partition("examples:")[2]))
    assert named and named <= set(COMMANDS)
    assert all(callable(import_module(f"mindspore_palm.cli.{command.module}").main) for command in COMMANDS.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: palm needs a command; there are train, "),
        (["trian"], "error: palm has no command 'trian'; did you mean palm train?"),
        (["--config", "x"], "error: palm has no command '--config'; there are train, "),
    ],
)
def test_what_is_no_command_is_refused(words, message):
    done = palm(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "harness"])
def test_help_of_a_command_shows_examples_as_it_was_called(name):
    done = palm(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: palm {name} ")
    examples = done.stdout.partition("\nexamples:\n")[2].splitlines()
    assert examples and all(line.startswith(f"  palm {name} ") for line in examples)
    (path,) = [path for path in SCRIPTS if f'"{name}"' in path.read_text(encoding="utf-8")]
    called = script(path.relative_to(ROOT), "--help").stdout
    assert called.startswith(f"usage: python run/{path.name} ")
    assert f"\n  python run/{path.name} " in called


def test_every_example_of_help_is_understood(monkeypatch):
    """The arguments of the examples: options that exist, and configurations and settings that are accepted."""
    for name in COMMANDS.keys() - {"harness"}:
        module = import_module(f"mindspore_palm.cli.{COMMANDS[name].module}")
        for example in module.EXAMPLES:
            options, words = set(re.findall(r"--[a-z-]+", example)), example.split()
            assert options <= set(re.findall(r"--[a-z-]+", Path(module.__file__).read_text() + "--device")), example
            if "--config" in words:
                overrides = [word for word in words if re.fullmatch(r"[a-z]+\.\w+=\S+", word)]
                load_settings(words[words.index("--config") + 1], overrides)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["trian"],
        ["train", "--help"],
        ["train", "--steps"],
        ["plan", "--help"],
        ["plan"],
        ["dry-run", "--help"],
        ["generate"],
        ["convert", "--from", "x"],
    ],
    ids=" ".join,
)
def test_help_and_wrong_arguments_answer_at_once(words):
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert palm(*words).returncode == (0 if "--help" in words else 2)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < PROCESSOR_SECONDS
    imported = palm(*words, options=("-X", "importtime")).stderr
    assert not re.search(r"\| +(mindspore|numpy|pydantic|sentencepiece)$", imported, re.M)


def test_scripts_are_aliases_from_any_folder(tmp_path):
    assert len(SCRIPTS) == 11
    for path in SCRIPTS:
        code = [line for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] not in '"#']
        assert len(code) == 3 and code[2].endswith('", __name__)') and "sys" not in "".join(code)
    for options in ([], ["-P"] if sys.version_info >= (3, 11) else [], ["-I"]):
        done = script(
            ROOT / "run" / "train.py", "--config", "palm_tiny", "--print-config", folder=tmp_path, options=options
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "preset: palm_tiny " in done.stdout


def test_a_configuration_of_the_package_is_found_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped_configs().keys() == {path.stem for path in (ROOT / "yaml").glob("*.yaml")}
    for name in ("palm_tiny", "palm_tiny.yaml", "yaml/palm_tiny.yaml", "yaml/palm_tiny"):
        assert find_config(Path(name)).samefile(ROOT / "yaml" / "palm_tiny.yaml"), name
        assert load_settings(name)[0].model.preset == "palm_tiny"
    for name in ("nowhere/palm_tiny", "palm_tiny.txt", "palm_tin", "/yaml/palm_tiny.yaml"):
        assert find_config(Path(name)) == Path(name)
    (tmp_path / "palm_tiny").write_text("train: {steps: 7}")  # a file of the user goes first
    assert load_settings("palm_tiny")[0].train.steps == 7
    assert load_settings("palm_tiny.yaml")[0].train.steps != 7


def test_a_worker_repeats_the_command_as_it_was_called(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run/train.py", "--config", "x", "a b"])
    assert invocation.name() == "python run/train.py" == Parser().prog
    assert invocation.script_and_arguments() == ["run/train.py", "--config", "x", "a b"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/palm", "train", "--config", "x", "a b"])
    monkeypatch.setattr(invocation, "_command", "")
    invocation.called_palm("train")
    assert sys.argv == ["/usr/bin/palm", "--config", "x", "a b"]
    assert invocation.name() == "palm train" == Parser().prog
    assert invocation.script_and_arguments() == [str(invocation.ENTRY), "train", "--config", "x", "a b"]


def test_a_worker_is_started_by_path_and_imports_its_own_package(tmp_path):
    """By msrun, which runs scripts: the modules of the package must not hide others of the same names, like random."""
    done = script(invocation.ENTRY, "train", "--print-config", "train.steps=3", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"steps: 3 .*override train\.steps=3", done.stdout)
    modules = script(invocation.ENTRY, "--help", folder=tmp_path, options=["-X", "importtime"]).stderr
    assert " mindspore_palm.cli.palm" in modules and not re.search(r"\|  +(console|options|errors)$", modules, re.M)

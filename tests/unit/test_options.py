"""Options of the commands: given twice, named in messages, and output files checked before the work."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from mindspore_palm.errors import UserError, run_command
from mindspore_palm.options import Parser, check_output, naming_options

ROOT = Path(__file__).resolve().parents[2]


def parser():
    parser = Parser()
    parser.add_argument("--once", type=int, default=3)
    parser.add_argument("--pair", nargs=2)
    parser.add_argument("--list", action="append", default=[])
    parser.add_argument("--switch", action="store_true")
    parser.add_argument("words", nargs="*")
    return parser


@pytest.mark.parametrize("parse", ["parse_args", "parse_intermixed_args"])
def test_each_occurrence_of_an_option_has_an_effect_or_is_refused(parse):
    def parse_with(*arguments):
        return vars(getattr(parser(), parse)(list(arguments)))

    parsed = parse_with("--list", "a", "--switch", "--list", "b", "--switch", "--once", "5", "x", "y")
    assert parsed == {"once": 5, "pair": None, "list": ["a", "b"], "switch": True, "words": ["x", "y"]}
    with pytest.raises(UserError, match=r"^--once is given twice, with 5 and 6; give it once$"):
        parse_with("--once", "5", "--once", "6")
    with pytest.raises(UserError, match="--once is given twice, with 3 and 3"):  # also for the default
        parse_with("--once", "3", "x", "--once=3")
    with pytest.raises(UserError, match="--pair is given twice, with a b and c d"):
        parse_with("--pair", "a", "b", "--pair", "c", "d")
    reused = parser()
    for _ in range(2):
        assert reused.parse_args(["--once", "5"]).once == 5


TWICE = {
    "train": ["--config", "a.yaml", "--config", "b.yaml"],
    "prepare_data": ["--config", "a.yaml", "--config", "b.yaml"],
    "dry_run": ["--rank", "0", "--rank", "1"],
    "plan": ["--machine", "tpu-v4", "--machine", "a100"],
    "generate": ["x", "--checkpoint", "run", "--seed", "1", "--seed", "2"],
    "evaluate": ["--checkpoint", "run", "--examples", "a.jsonl", "--examples", "b.jsonl"],
    "convert": ["--from", "lucidrains", "a.pt", "--from", "lucidrains", "b.pt", "--to", "c"],
}


@pytest.mark.parametrize("name", TWICE)
def test_every_command_refuses_an_option_that_is_given_twice(name, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location(f"run_{name}", ROOT / "run" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *TWICE[name]])
    code = run_command(module.main)
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("error: --") and "is given twice" in err and err.count("\n") == 1


def test_output_files_are_checked(tmp_path):
    (tmp_path / "data.txt").write_text("kept")
    (tmp_path / "link.txt").symlink_to(tmp_path / "data.txt")
    os.mkfifo(tmp_path / "pipe")
    check_output("--json", tmp_path / "new.json")
    check_output("--json", tmp_path / "data.txt")
    for file, problem in (
        (tmp_path / "nowhere" / "a.json", "there is no folder"),
        (tmp_path, "this is a folder or a device"),
        (tmp_path / "pipe", "this is a folder or a device"),
        (tmp_path / "link.txt", "would replace an input"),
        ("/proc/new.json", "nothing can be written in /proc"),
    ):
        with pytest.raises(UserError, match=f"^--json {file}: .*{problem}"):
            check_output("--json", file, [tmp_path / "data.txt"])
    assert (tmp_path / "data.txt").read_text() == "kept" and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("message", "rewritten"),
    [
        ("data.path = x.txt: there is none", "--data x.txt: there is none"),
        (
            "set data.text_field to one of them; data.path holds some",
            "set --text-field to one of them; --data holds some",
        ),
        ("my/data.path = y and data.paths = 3", "my/data.path = y and data.paths = 3"),
    ],
)
def test_messages_name_options(message, rewritten):
    with pytest.raises(UserError) as caught, naming_options({"data.path": "--data", "data.text_field": "--text-field"}):
        raise UserError(message)
    assert str(caught.value) == rewritten

"""The command ``palm``: the table of its commands, its help, and the aliases of the folder run/."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from mindspore_palm import invocation
from mindspore_palm.errors import UserError
from mindspore_palm.launch.command import run_process

HELP = ("-h", "--help", "help")


@dataclass(frozen=True)
class Command:
    """A command of ``palm``."""

    module: str
    """Module of this room, whose ``main()`` reads ``sys.argv[1:]``. It is imported once the command is called."""
    summary: str
    """One line for ``palm --help``."""
    trains: bool = False
    """Whether it trains, and so saves before it stops; see ``run_process``."""
    results: bool = False
    """Whether its output is its result; see ``run_process``."""


COMMANDS = {
    "train": Command("train", "train a PaLM from text, or fine-tune one on pairs", trains=True),
    "study": Command("study", "train variants alike with several seeds, and compare them"),
    "generate": Command("generate", "continue prompts with a trained model", results=True),
    "chat": Command("chat", "talk with a trained model in the terminal", results=True),
    "serve": Command("serve", "answer requests over HTTP, in the format of OpenAI's completions"),
    "evaluate": Command("evaluate", "score a trained model on text and on questions", results=True),
    "harness": Command("harness", "evaluate in EleutherAI's lm-evaluation-harness", results=True),
    "convert": Command("convert", "convert weights from and to other PaLMs"),
    "prepare": Command("prepare", "encode a corpus before training, which does the same if needed"),
    "dry-run": Command("dry_run", "partition a training step for any number of devices", results=True),
    "plan": Command("plan", "step time, memory and meshes of a run on a machine", results=True),
}
"""All commands, in the order of ``palm --help``. A new command is a module beside this one, and a line here."""

EXAMPLES = """examples:
  palm train --config palm_tiny                     the quick start: a small PaLM on the source of Python itself
  palm train --config palm_tiny data.path=my.txt    the same on a text of your own
  palm generate --checkpoint runs/palm_tiny "def main("
  palm plan --config palm_540b                      what PaLM 540B costs
  palm train --help                                 options and examples of a command"""


def main() -> int:
    """Runs ``palm COMMAND ...`` in this process; returns its exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        invocation.called_palm(name)
        return run(name)
    return run_process(lambda: _without_command(name))


def alias(name: str, caller: str) -> Callable[[], None]:
    """A script in run/: runs the command, and ends the process, if the script is what the user called.

    Args:
        name: command of ``palm``.
        caller: ``__name__`` of the script.

    Returns:
        The command itself, which reads ``sys.argv[1:]``.
    """
    if caller == "__main__":
        sys.exit(run(name))
    return _main_of(name)


def run(name: str) -> int:
    """Runs a command on ``sys.argv[1:]``; returns its exit code."""
    command = COMMANDS[name]
    return run_process(lambda: _main_of(name)(), trains=command.trains, results=command.results)


def _main_of(name: str) -> Callable[[], None]:
    return import_module(f"mindspore_palm.cli.{COMMANDS[name].module}").main


def _without_command(name: str) -> None:
    if name in HELP:
        print("usage: palm COMMAND ...\n\nPaLM in MindSpore: train, use, convert and plan models.\n\ncommands:")
        for command, facts in COMMANDS.items():
            print(f"  {command:<10} {facts.summary}")
        print(f"\n{EXAMPLES}")
        return
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    fix = f"did you mean palm {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    problem = f"palm has no command {name!r}" if name else "palm needs a command"
    raise UserError(f"{problem}; {fix}; palm --help shows examples")

"""README and pages as users follow them: their Python runs as it stands, and their commands are understood.

``test_commands_of_pages.py`` runs the commands as well, in small.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module

import pytest
from cli.pages import PAGES, ROOT, blocks, commands

from mindspore_palm import PaLM, Tokenizer
from mindspore_palm.checkpoint.model_folder import save_model, weights_of
from mindspore_palm.cli.palm import COMMANDS
from mindspore_palm.config import Settings
from mindspore_palm.options import Parser
from mindspore_palm.settings import load_settings

PYTHON = [page for page, text in PAGES.items() if any(language == "python" for language, _ in blocks(text))]
SCRIPTS = {
    f"run/{path.name}": re.search(r'"([a-z-]+)"', path.read_text(encoding="utf-8").partition("alias")[2]).group(1)
    for path in (ROOT / "run").glob("*.py")
    if "alias" in path.read_text(encoding="utf-8")
}
REFUSED = {"train.stpes=50"}  # slips that a page shows with the answer
ADDED = {"model.mlp=relu2", "parallel.strategy=heads", "optimizer.name=sgd"}  # by a reader of CONTRIBUTING.md


def commands_of(page):
    """Name of the command and its arguments, for each call of palm or of a script of run/."""
    for command in commands(PAGES[page]):
        for part in command.text.split("&&"):
            words = part.split()
            script = next((word for word in words if word in SCRIPTS), None)
            if script and words[0] in ("python", "python3", "msrun"):
                yield SCRIPTS[script], part.partition(script)[2]
            elif words[:1] == ["palm"] and len(words) > 1 and words[1] in COMMANDS:
                yield words[1], part.partition(words[1])[2]


COMMANDED = {page: found for page in PAGES if (found := list(commands_of(page)))}


@pytest.fixture(scope="module")
def final(device, tmp_path_factory):
    """A folder as a finished run leaves it."""
    folder = tmp_path_factory.mktemp("run")
    words = (f"import os{i}\ndef f{i}(a, b):\n    return a + {i} * b\n" for i in range(400))
    tokenizer = Tokenizer.train(words, 320, folder / "tokenizer.model")
    sizes = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 8, "d_ff": 32, "vocab_size": 320}
    settings = Settings.model_validate({"model": sizes})
    save_model(folder / "final", weights_of(PaLM(settings.model)), tokenizer.serialized, settings, step=1)
    return folder / "final"


@pytest.mark.parametrize("page", PYTHON)
def test_python_of_a_page(page, final):
    for block in [code for language, code in blocks(PAGES[page]) if language == "python"]:
        code = block.replace("runs/palm_tiny/final", str(final))
        shows_logits = "logits = " in block
        if shows_logits:
            code += "\nprint(logits.shape, logits.dtype)\n"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
        assert run.returncode == 0, run.stderr[-1500:]
        assert run.stdout
        assert not shows_logits or re.fullmatch(r"\(1, \d+, 320\) Float32\n", run.stdout), run.stdout
        assert "Traceback" not in run.stderr


class Understood(Exception):
    """The arguments of a command were parsed."""


@pytest.mark.parametrize("page", COMMANDED)
def test_commands_of_a_page_are_understood(page, monkeypatch):
    """Options and overrides, by the parser of the command itself; configurations and settings are loaded."""

    def stopping(parse):
        def parsed(self, *args, **kwargs):
            raise Understood(parse(self, *args, **kwargs))

        return parsed

    for method in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(Parser, method, stopping(getattr(Parser, method)))
    for name, arguments in COMMANDED[page]:
        words = shlex.split(arguments.partition(" > ")[0], comments=True)
        if name == "harness" or not words or (REFUSED | ADDED) & set(words):
            continue  # the harness has options of its own
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(Understood) as understood:
            import_module(f"mindspore_palm.cli.{COMMANDS[name].module}").main()
        (namespace,) = understood.value.args
        config = getattr(namespace, "config", None)
        if config and (ROOT / config).exists() and "finetune" not in config:
            load_settings(ROOT / config, namespace.overrides)


def test_commands_and_python_are_found():
    assert sum(map(len, COMMANDED.values())) > 60 and {"README.md", "docs/getting-started.md"} <= COMMANDED.keys()
    assert {"docs/getting-started.md", "docs/generation.md", "docs/reference/api.md"} <= set(PYTHON)
    assert {name for found in COMMANDED.values() for name, _ in found} == COMMANDS.keys()

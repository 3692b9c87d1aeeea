"""Prepares a corpus: python run/prepare_data.py --config yaml/palm_tiny.yaml data.path=my_texts"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mindspore_palm.errors import run_command
from mindspore_palm.launch.command import run_process
from mindspore_palm.options import Parser


def command(arguments: list[str] | None = None) -> None:
    """Prepares the corpus that the arguments name; None uses the process's own arguments."""
    parser = Parser(
        description="Trains a tokenizer on a corpus and encodes the corpus; training does the same if needed."
    )
    parser.add_argument("--config", help="a YAML file of settings; without it, the defaults")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file's")
    options = parser.parse_args(arguments)
    from mindspore_palm.data import prepare
    from mindspore_palm.data.files import printable
    from mindspore_palm.effects import print_notes
    from mindspore_palm.parallel.workers import refuse_workers
    from mindspore_palm.settings import load_settings

    refuse_workers("the preparation")
    settings, origins = load_settings(options.config, options.overrides)
    print_notes(settings, origins, options.overrides, sys.stderr)
    prepared = prepare(settings.data, settings.model.vocab_size)
    print(prepared.summary())
    print(f"folder      {printable(prepared.folder)}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command in this process and returns its exit code."""
    return run_command(lambda: command(arguments))


if __name__ == "__main__":
    sys.exit(run_process(command, results=False))

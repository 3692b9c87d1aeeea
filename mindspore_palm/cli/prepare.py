"""``palm prepare``: prepares a corpus."""

from __future__ import annotations

import sys

from mindspore_palm.options import Parser

EXAMPLES = ("--config yaml/palm_tiny.yaml data.path=my_texts",)


def main() -> None:
    """Prepares a corpus, and prints where it is."""
    description = "Trains a tokenizer on a corpus and encodes the corpus; training does the same if needed."
    parser = Parser(description=description, examples=EXAMPLES)
    parser.add_argument("--config", help="a YAML file of settings; without it, the defaults")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file's")
    options = parser.parse_args()
    from mindspore_palm.data import prepare_text
    from mindspore_palm.data.files import printable
    from mindspore_palm.effects import print_notes
    from mindspore_palm.parallel.workers import refuse_workers
    from mindspore_palm.settings import load_settings

    refuse_workers("the preparation")
    settings, origins = load_settings(options.config, options.overrides)
    print_notes(settings, origins, options.overrides, sys.stderr)
    prepared = prepare_text(settings.data, settings.model.vocab_size)
    print(prepared.summary())
    print(f"folder      {printable(prepared.folder)}")

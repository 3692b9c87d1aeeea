"""Trains a PaLM: python run/train.py --config yaml/palm_tiny.yaml [section.key=value ...]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mindspore_palm.errors import run_command
from mindspore_palm.settings import describe, load_settings


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a PaLM from text.")
    parser.add_argument("--config", metavar="FILE", help="YAML file; states only what differs from the defaults")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings, train nothing")
    parser.add_argument("--print-sharding", action="store_true", help="print where every weight lies, train nothing")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in the same folder")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example train.steps=50")
    arguments = parser.parse_intermixed_args()
    settings, origins = load_settings(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(describe(settings, origins))
        return
    if arguments.print_sharding:
        from mindspore_palm.train.sharding import print_layout

        print_layout(settings)
        return
    from mindspore_palm.train.launch import run  # starts MindSpore: not needed for what is above

    run(settings, arguments.overwrite, sys.argv)


if __name__ == "__main__":
    sys.exit(run_command(main))

"""Partitions a training step for any number of devices: python run/dry_run.py --config yaml/palm_540b.yaml [...]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mindspore_palm.errors import run_command
from mindspore_palm.settings import load_settings


def main() -> None:
    parser = argparse.ArgumentParser(description="Partitions a training step and lists its collectives.")
    parser.add_argument("--config", metavar="FILE", help="YAML file; states only what differs from the defaults")
    parser.add_argument("--target", choices=("GPU", "Ascend"), default="GPU", help="for which MindSpore partitions")
    parser.add_argument("--rank", type=int, default=0, help="as which rank")
    parser.add_argument("--layer", action="store_true", help="only what a layer adds: three layers less two")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example model.layers=2")
    arguments = parser.parse_intermixed_args()

    def ledger_of(*more: str) -> object:
        settings, _ = load_settings(arguments.config, [*arguments.overrides, *more])
        return dry_run(settings, arguments.target, arguments.rank)

    load_settings(arguments.config, arguments.overrides)  # what is wrong is said before MindSpore starts
    from mindspore_palm.plan.dry_run import dry_run
    from mindspore_palm.plan.ledger import per_layer, show_ledger

    if arguments.layer:
        print(show_ledger(per_layer(ledger_of("model.layers=2"), ledger_of("model.layers=3"))))
    else:
        print(show_ledger(ledger_of()))


if __name__ == "__main__":
    sys.exit(run_command(main))

"""``palm dry-run``: partitions a training step for any number of devices."""

from __future__ import annotations

from pathlib import Path

from mindspore_palm.errors import UserError
from mindspore_palm.options import Parser, check_output
from mindspore_palm.parallel.workers import refuse_workers

EXAMPLES = (
    "--config yaml/palm_540b.yaml",
    "--config yaml/palm_540b.yaml --layer",
    "--config yaml/palm_540b_ascend.yaml --target Ascend --json graph.json",
)


def main() -> None:
    """Prints the shards and collectives of one rank."""
    description = "Partitions a training step and lists its shards and collectives."
    parser = Parser(description=description, examples=EXAMPLES)
    parser.add_argument("--config", metavar="FILE", help="YAML file; states only what differs from the defaults")
    parser.add_argument("--target", choices=("GPU", "Ascend"), help="target to partition for; default as train.device")
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="rank to compile as")
    parser.add_argument("--layer", action="store_true", help="print only what one layer adds: three layers less two")
    parser.add_argument("--whole", action="store_true", help="compile all layers instead of two and three of them")
    parser.add_argument("--json", metavar="FILE", help="also write all of it to a file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example parallel.recompute=none")
    arguments = parser.parse_intermixed_args()
    refuse_workers("the dry run")
    from mindspore_palm.cli.settings import settings_to_look_at

    settings = settings_to_look_at(arguments.config, arguments.overrides)
    from mindspore_palm.dry_run.compile import dry_run, layer_ledger
    from mindspore_palm.dry_run.ledger import show_ledger
    from mindspore_palm.dry_run.report import describe_dry_run, write_dry_run

    if arguments.layer and (arguments.whole or arguments.json):
        raise UserError("--layer prints only the collectives of a layer; leave out --whole and --json")
    if arguments.json is not None:
        check_output("--json", arguments.json, [arguments.config] if arguments.config else [])
    target = arguments.target or ("Ascend" if settings.train.device == "Ascend" else "GPU")
    if arguments.layer:
        print(show_ledger(layer_ledger(settings, target, arguments.rank).counts))
        return
    run = dry_run(settings, target, arguments.rank, arguments.whole)
    print(describe_dry_run(run, settings, target, arguments.rank))
    if arguments.json is not None:
        write_dry_run(run, settings, target, arguments.rank, Path(arguments.json))

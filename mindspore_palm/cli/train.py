"""``palm train``: trains or fine-tunes a PaLM."""

from __future__ import annotations

from dataclasses import replace

from mindspore_palm import invocation
from mindspore_palm.console import results_follow
from mindspore_palm.options import Parser

EXAMPLES = (
    "--config yaml/palm_tiny.yaml",
    "--config yaml/palm_tiny.yaml data.path=my_texts train.output=runs/mine",
    "--config yaml/finetune_lora.yaml data.path=pairs.jsonl",
    "--config yaml/palm_tiny.yaml parallel.data=2 parallel.model=2",
    "--config yaml/palm_tiny.yaml --profile 5:8 train.steps=8",
    "--config yaml/palm_540b.yaml --print-config",
)


def main() -> None:
    """Trains, or prints what would be trained."""
    parser = Parser(description="Trains a PaLM from text.", examples=EXAMPLES, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file; states only what differs from the defaults")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings, train nothing")
    parser.add_argument(
        "--print-sharding", action="store_true", help="print how every weight is sharded, train nothing"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in the same folder")
    parser.add_argument(
        "--accept", action="append", default=[], metavar="section.key", help="resume although this setting has changed"
    )
    parser.add_argument("--rewind-to", type=int, metavar="STEP", help="go back to the last checkpoint up to this step")
    parser.add_argument("--skip-batches", metavar="FROM:TO", help="skip batches FROM up to TO, counted from 0")
    parser.add_argument("--profile", metavar="FROM:TO", help="print where the time of these steps goes, with a trace")
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="restart up to N times when a worker or the process dies",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example train.steps=50")
    arguments = parser.parse_intermixed_args()
    from mindspore_palm.effects import print_notes
    from mindspore_palm.parallel.workers import check_workers
    from mindspore_palm.settings import describe, load_settings  # slow to import; signals are already handled

    settings, origins = load_settings(arguments.config, arguments.overrides)
    if settings.finetune.checkpoint:
        from mindspore_palm.train.finetune import with_model_of_checkpoint

        settings = with_model_of_checkpoint(settings, origins)
        origins = {f"model.{name}": "finetune.checkpoint" for name in type(settings.model).model_fields} | origins
    if arguments.print_config or arguments.print_sharding:
        results_follow()
    if arguments.print_config:
        print(describe(settings, origins))
        return
    if arguments.print_sharding:
        from mindspore_palm.plan.sharding import print_layout

        print_layout(settings)
        return
    check_workers(settings.parallel.devices)
    print_notes(settings, origins, arguments.overrides)
    from mindspore_palm.train.command import run  # starts MindSpore, which nothing above needs
    from mindspore_palm.train.continuation import parse_start_options

    start = parse_start_options(arguments)
    if start.profile:
        from mindspore_palm.plan.host import planned_step

        start = replace(start, profile=replace(start.profile, planner=planned_step))
    run(settings, start, invocation.script_and_arguments())

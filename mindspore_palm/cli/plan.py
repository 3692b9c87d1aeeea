"""``palm plan``: plans a run before it starts."""

from __future__ import annotations

import argparse
from pathlib import Path

from mindspore_palm.errors import UserError
from mindspore_palm.file_names import CONFIG, METRICS
from mindspore_palm.options import Parser, check_output
from mindspore_palm.parallel.workers import refuse_workers

EXAMPLES = (
    "--config yaml/palm_540b.yaml",
    "--published",
    "--config yaml/palm_62b.yaml --machine ascend-910b --devices 512 --search",
    "--crossover",
    "--pods --charts runs/plan",
    "--schedules 8 24 --charts runs/plan",
    "--from-run runs/palm_tiny",
    "--schedules 8 24 --config yaml/palm_62b.yaml --machine a100 parallel.data=8",
)


def main() -> None:
    """Prints the answer to one question about a run."""
    description = "Parameters, FLOPs, memory, step time, MFU and HFU of a run on a machine."
    parser = Parser(description=description, examples=EXAMPLES)
    parser.add_argument("--config", metavar="FILE", help="YAML file; states only what differs from the defaults")
    parser.add_argument("--machine", metavar="NAME", help="a machine, or a YAML file of your own; default tpu-v4")
    parser.add_argument(
        "--devices", type=int, metavar="N", help="devices for --search and --crossover; default: those of the mesh"
    )
    question = parser.add_mutually_exclusive_group()
    question.add_argument("--search", action="store_true", help="the meshes and pipelines that fit, best first")
    question.add_argument(
        "--crossover",
        action="store_true",
        help="where a pipeline overtakes meshes without one, by devices, links and batch; default PaLM 540B",
    )
    question.add_argument(
        "--from-run", metavar="FOLDER", help="fit a machine to a run's measured steps, and print its YAML file"
    )
    question.add_argument("--published", action="store_true", help="the paper's table, published beside computed")
    question.add_argument("--pods", action="store_true", help="SPMD or Pathways, by pods and links; default PaLM 540B")
    question.add_argument(
        "--schedules",
        type=int,
        nargs=2,
        metavar=("DEVICES", "MICRO_BATCHES"),
        help="pipeline schedules; with --config, of a network: step time, and memory by stage",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the plan, or all meshes, to a file")
    parser.add_argument("--charts", metavar="FOLDER", help="draw charts into a folder")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example parallel.recompute=none")
    arguments = parser.parse_intermixed_args()
    refuse_workers("the plan")
    check_options(arguments)
    from mindspore_palm.plan import commands

    if arguments.published:
        print(commands.published())
        return
    if arguments.from_run:
        print(fit_to_run(Path(arguments.from_run), arguments.machine))
        return
    charts, json = (Path(name) if name else None for name in (arguments.charts, arguments.json))
    if arguments.schedules and not arguments.config:
        devices, micro_batches = arguments.schedules
        print(commands.schedules(devices, micro_batches, charts))
        return
    from mindspore_palm.cli.settings import settings_to_look_at

    settings = settings_to_look_at(arguments.config or "palm_540b", arguments.overrides)
    machine = arguments.machine or "tpu-v4"
    if arguments.pods:
        print(commands.pods(settings, machine, charts))
    elif arguments.schedules:
        print(commands.schedules_of(settings, machine, *arguments.schedules))
    elif arguments.crossover:
        print(commands.crossover(settings, machine, arguments.devices))
    elif arguments.search:
        print(commands.search_meshes(settings, machine, arguments.devices, charts, json))
    else:
        print(commands.plan(settings, machine, charts, json))


def fit_to_run(folder: Path, machine: str | None) -> str:
    """A machine file that predicts the steps of a run.

    Args:
        folder: of the run.
        machine: to take over all but the efficiencies from; None for a CPU.

    Raises:
        UserError: there is no run, or its steps cannot be used.
    """
    from mindspore_palm.cli.settings import settings_to_look_at
    from mindspore_palm.plan import commands
    from mindspore_palm.plan.fit import MeasuredStep
    from mindspore_palm.train.log.metrics import read_rows

    config = folder / CONFIG
    if not config.is_file():
        raise UserError(f"--from-run {folder}: there is no run, as it has no {CONFIG}; name the folder of train.output")
    settings = settings_to_look_at(str(config), [])
    length, devices = settings.data.seq_len, settings.parallel.devices
    flops = settings.model.flops_per_token(length)
    steps = [
        MeasuredStep(
            round(row.tokens_per_second * row.seconds / length),
            row.seconds,
            row.tokens_per_second * flops / row.mfu / devices,
        )
        for row in read_rows(folder / METRICS)
        if not row.skipped and all(0 < value < float("inf") for value in (row.seconds, row.tokens_per_second, row.mfu))
    ]
    return commands.fit_machine(str(folder), settings, steps, machine)


def check_options(arguments: argparse.Namespace) -> None:
    """Checks that every option that is given has an effect.

    Raises:
        UserError: names one that has none.
    """
    given = {name: value for name, value in vars(arguments).items() if value not in (None, False, [])}
    if not given.keys() & {"config", "crossover", "published", "pods", "schedules", "from_run"}:
        raise UserError(
            "nothing to plan: give --config FILE, --published, --crossover, --pods or --schedules, or --from-run "
            "FOLDER; --help has examples"
        )
    if "from_run" in given and (others := sorted(given.keys() - {"from_run", "machine"})):
        raise UserError(f"--from-run takes no other option than --machine; leave out {others[0]}")
    if "published" in given and (others := sorted(given.keys() - {"published"})):
        raise UserError(f"--published takes no other option; leave out {others[0]}")
    allowed = {"schedules", "config", "machine", "overrides"} if "config" in given else {"schedules", "charts"}
    if "schedules" in given and (others := sorted(given.keys() - allowed)):
        only = "--machine and settings" if "config" in given else "--charts, or --config"
        raise UserError(f"--schedules takes no other option than {only}; leave out {others[0]}")
    if asked := sorted(given.keys() & {"pods", "crossover"} if "json" in given else ()):
        raise UserError(f"--json is for a plan or a search; leave it out, or leave out --{asked[0]}")
    if "crossover" in given and "charts" in given:
        raise UserError("--crossover draws no charts; leave out --charts")
    if "devices" in given and not given.keys() & {"search", "crossover"}:
        raise UserError(
            "--devices is for a search; add --search, or set parallel.pods, parallel.data and parallel.model"
        )
    if "charts" in given:
        path = Path(given["charts"]).resolve()
        if not next(one for one in (path, *path.parents) if one.exists()).is_dir():
            raise UserError(f"--charts {given['charts']}: a file is in the place of the folder")
    if "json" in given:
        if not Path(given["json"]).resolve().parent.is_dir():
            raise UserError(f"--json {given['json']}: there is no folder to write it into")
        check_output("--json", given["json"], [name for name in (given.get("config"), given.get("machine")) if name])

"""What a run costs before it starts: python run/plan.py --config yaml/palm_540b.yaml [--machine tpu-v4] [...]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mindspore_palm.errors import UserError, run_command
from mindspore_palm.settings import load_settings

EXAMPLES = """examples:
  python run/plan.py --config yaml/palm_540b.yaml
  python run/plan.py --published
  python run/plan.py --config yaml/palm_62b.yaml --machine ascend-910b --devices 512 --search
  python run/plan.py --pods --charts runs/plan"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Parameters, FLOPs, memory, step time, MFU and HFU of a run on a machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file; states only what differs from the defaults")
    parser.add_argument("--machine", default="tpu-v4", metavar="NAME", help="or a YAML file of your own; tpu-v4")
    parser.add_argument("--devices", type=int, metavar="N", help="with --search: how many; as parallel asks for")
    parser.add_argument("--search", action="store_true", help="the meshes that fit, best first")
    parser.add_argument("--published", action="store_true", help="the article's table: published beside recomputed")
    parser.add_argument(
        "--pods", action="store_true", help="SPMD or Pathways, over pods and links; PaLM 540B by itself"
    )
    parser.add_argument("--json", metavar="FILE", help="write the plan to a file, too")
    parser.add_argument("--charts", metavar="FOLDER", help="draw charts into a folder")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example parallel.recompute=none")
    arguments = parser.parse_intermixed_args()
    if not (arguments.config or arguments.published or arguments.pods):
        raise UserError("nothing to plan: give --config FILE, --published or --pods; --help has examples")
    from mindspore_palm.plan import commands

    if arguments.published:
        print(commands.published())
        return
    config = arguments.config or str(Path(__file__).resolve().parents[1] / "yaml" / "palm_540b.yaml")
    settings, _ = load_settings(config, arguments.overrides)
    charts = Path(arguments.charts) if arguments.charts else None
    json = Path(arguments.json) if arguments.json else None
    if arguments.pods:
        print(commands.pods(settings, arguments.machine, charts))
    elif arguments.search:
        print(commands.search_meshes(settings, arguments.machine, arguments.devices, charts, json))
    else:
        print(commands.plan(settings, arguments.machine, charts, json))


if __name__ == "__main__":
    sys.exit(run_command(main))

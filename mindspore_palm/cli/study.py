"""``palm study``: trains variants of a network alike, and compares them."""

from __future__ import annotations

from pathlib import Path

from mindspore_palm.errors import UserError
from mindspore_palm.options import Parser
from mindspore_palm.parallel.workers import refuse_workers

EXAMPLES = (
    "yaml/studies/article.yaml --quick",
    "yaml/studies/article.yaml --jobs 2",
    "--page docs/results/results.json",
)


def main() -> None:
    """Runs a study, or makes the results page of one."""
    description = "Trains variants of a network alike, with several seeds, and compares them."
    parser = Parser(description=description, examples=EXAMPLES)
    parser.add_argument("study", nargs="?", metavar="FILE", help="YAML file of the study; see yaml/studies/")
    parser.add_argument("--quick", action="store_true", help="the smaller study that the file's section quick names")
    parser.add_argument("--output", metavar="FOLDER", help="folder of the results; default runs/study/NAME")
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="runs that are trained side by side; default one for each processor, up to 16",
    )
    parser.add_argument(
        "--only-times", action="store_true", help="measure times here, of networks that were trained on another machine"
    )
    parser.add_argument("--page", metavar="FILE", help="only make the results page from a results.json")
    arguments = parser.parse_args()
    refuse_workers("the study")
    if bool(arguments.study) == bool(arguments.page):
        raise UserError("name a study, such as yaml/studies/article.yaml, or a results.json with --page")
    if arguments.page and (arguments.quick or arguments.output or arguments.jobs or arguments.only_times):
        raise UserError("--page takes no other option; leave out all others")
    if arguments.only_times and arguments.jobs:
        raise UserError("--only-times trains nothing; leave out --jobs")
    from mindspore_palm.study import command  # starts MindSpore, which nothing above needs

    if arguments.page:
        print(command.publish(Path(arguments.page)))
        return
    output = Path(arguments.output) if arguments.output else None
    command.run(Path(arguments.study), arguments.quick, output, arguments.jobs, arguments.only_times)

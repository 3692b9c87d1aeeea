"""``run/study.py``: runs a study, or makes the results page from one that has run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mindspore_palm.console import say
from mindspore_palm.errors import Interrupted, UserError
from mindspore_palm.files import expanded, write_atomically, write_json
from mindspore_palm.parallel.context import open_device
from mindspore_palm.study.file import read_study
from mindspore_palm.study.jobs import Jobs, as_many_as_fit
from mindspore_palm.study.page import page
from mindspore_palm.study.pictures import draw
from mindspore_palm.study.report import report
from mindspore_palm.study.results import results
from mindspore_palm.study.runner import Runner
from mindspore_palm.study.runs import describe_counts
from mindspore_palm.study.store import Store, fingerprint, locked_study, tokens_of
from mindspore_palm.study.trainer import open_text

RESULTS, REPORT = "results.json", "report.md"
PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "results" / RESULTS
"""results.json of the page in the documentation."""


def run(
    file: Path, quick: bool = False, output: Path | None = None, jobs: int | None = None, only_times: bool = False
) -> Path:
    """Runs what is missing of a study, and writes results.json, report.md and pictures; returns their folder.

    Args:
        file: of the study.
        quick: whether to run the smaller study of its section quick.
        output: folder of the results; by default runs/study/NAME, or NAME-quick.
        jobs: processes that train side by side; by default as many as processors and memory allow.
        only_times: whether the folder's networks were trained on another machine, and times are measured on this one.

    Raises:
        UserError: the study is wrong, there are fewer processors than jobs, or the folder holds other results.
        Interrupted: Ctrl-C; what is finished is kept.
    """
    study = read_study(file)
    study = study.quickly() if quick else study
    folder = expanded(output or Path("runs/study") / f"{file.stem}{'-quick' if quick else ''}", "--output")
    settings = study.settings_of(study.base, next(iter(study.sizes)))
    count = as_many_as_fit() if jobs is None else jobs
    side_by_side = Jobs(count, settings) if count != 1 else None
    with locked_study(folder):
        open_device("CPU")
        prepared = open_text(settings)
        store = Store(folder, fingerprint(prepared), tokens_of(prepared), only_times)
        say(f"{study.title}: {describe_counts(study)}; results in {folder}")
        try:
            parts = Runner(study, store, prepared, side_by_side).run()
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; what is finished is in {folder}, and the same command resumes") from None
        found = results(study, quick, store, *parts)
        write_json(folder / RESULTS, found)
        published = read_results(PUBLISHED) if quick and PUBLISHED.exists() else None
        _write(folder / REPORT, report(found, published))
        draw(found, folder)
    say(f"{folder / REPORT} shows it; {RESULTS} has every number")
    return folder


def publish(file: Path) -> Path:
    """Writes the results page and its pictures from a results.json; returns the page.

    The page is beside the folder of results.json and has its name: docs/results/results.json gives docs/results.md.

    Raises:
        UserError: it is not the results.json of a study.
    """
    found = read_results(file)
    target = file.resolve().parent.with_suffix(".md")
    _write(target, page(found, file.resolve().parent.name))
    draw(found, file.parent)
    return target


def read_results(file: Path) -> dict[str, Any]:
    """results.json of a study.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        found = json.loads(expanded(file, "--page").read_bytes())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; run a study first, whose folder has a {RESULTS}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"claims", "comparisons", "times", "networks"} <= found.keys():
        raise UserError(f"{file} is not the {RESULTS} of a study")
    return found


def _write(path: Path, text: str) -> None:
    with write_atomically(path) as file:
        file.write(text.encode())

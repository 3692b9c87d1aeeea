"""MindSpore's own partitioner at work for any number of devices, in one process, with nothing at full size."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.model.initial import placements
from mindspore_palm.parallel import host
from mindspore_palm.parallel.axes import layout
from mindspore_palm.parallel.check import check_layout, layout_of
from mindspore_palm.parallel.context import play_rank, use_graphs
from mindspore_palm.parallel.host import build
from mindspore_palm.plan.ledger import Collective, read_ledger
from mindspore_palm.settings import read_yaml, settings_to_yaml
from mindspore_palm.train.build import build_step

GRAPH = "validate"  # the last pass before the back end


def dry_run(settings: Settings, target: str = "GPU", rank: int = 0) -> Counter[Collective]:
    """Compiles the training step of one pass as one rank of the mesh, and stops before anything is allocated.

    Args:
        settings: of the run; ``train.micro_batch`` or the last batch size is the pass.
        target: GPU or Ascend, for which MindSpore partitions.
        rank: as which.

    Returns:
        The collectives of the compiled graph.

    Raises:
        UserError: the settings do not fit, or ask for one device.
    """
    place = layout_of(settings, target)
    if place.devices == 1:
        raise UserError("a dry run is of several devices; set parallel.pods, parallel.data or parallel.model")
    check_layout(settings, place, placements(settings.model, place))
    return read_ledger(partitioned_graph(settings, target, rank), place.mesh, rank)


def partitioned_graph(settings: Settings, target: str, rank: int) -> str:
    """The text of the step's graph behind the partitioner, for one rank.

    In a process of its own: MindSpore reads only once whether to write graphs, and where.

    Raises:
        UserError: what partitions on CPU cannot be built here.
        RuntimeError: MindSpore refused the graph; in its words.
    """
    build.extension()
    with tempfile.TemporaryDirectory() as folder:
        wanted = {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": folder, "MS_DEV_DUMP_IR_PASSES": GRAPH}
        path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
        child = subprocess.run(  # noqa: S603 - this interpreter, and code from here
            [sys.executable, "-c", f"from {__name__} import _compile; _compile()", target, str(rank)],
            input=settings_to_yaml(settings),
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, **wanted, "PYTHONPATH": path, "GLOG_v": "4"},
        )
        graphs = list(Path(folder).rglob(f"*_{GRAPH}_*.ir"))
        if child.returncode or not graphs:
            said = [line for line in child.stderr.splitlines() if line.strip()]
            words = [line for line in said if "Error: " in line] or said[-1:]
            raise RuntimeError(f"MindSpore did not partition the step: {' '.join(words)}")
        return max(graphs, key=lambda file: file.stat().st_mtime).read_text()


def _compile() -> None:
    """In the child: settings from standard input, target and rank from the command line."""
    target, rank = sys.argv[1], int(sys.argv[2])
    settings = Settings.model_validate(read_yaml(sys.stdin.read(), "the settings of a dry run"))
    place = layout_of(settings, target)
    use_graphs()
    host.install_dry_run(rank, place.devices, target)
    play_rank(rank)
    with layout(place), suppress(host.DryRunComplete):
        _, step = build_step(settings, one_pass=True)
        rows = settings.train.micro_batch_of(settings.train.batch_ramp()[-1][1]) // place.shards("batch")
        tokens = np.zeros((rows, settings.data.seq_len), np.int32)
        step(tokens, tokens)

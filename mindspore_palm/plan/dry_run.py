"""MindSpore's own partitioner at work for any number of devices, in one process, with nothing at full size."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.model.initial import placements
from mindspore_palm.parallel import host
from mindspore_palm.parallel.axes import current_layout, layout
from mindspore_palm.parallel.check import check_layout, layout_of
from mindspore_palm.parallel.context import play_rank, use_graphs
from mindspore_palm.plan.ledger import Collective, read_ledger
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
    """The text of the step's graph behind the partitioner, for one rank."""
    place = layout_of(settings, target)
    use_graphs()
    host.install_dry_run(rank, place.devices, target)
    play_rank(rank)
    try:
        with layout(place), _saved_graphs() as folder:
            _, step = build_step(settings, one_pass=True)
            rows = settings.train.micro_batch_of(settings.train.batch_ramp()[-1][1]) // current_layout().shards("batch")
            tokens = np.zeros((rows, settings.data.seq_len), np.int32)
            with suppress(host.DryRunComplete):
                step(tokens, tokens)
            graphs = list(folder.rglob(f"*_{GRAPH}_*.ir"))
            return max(graphs, key=lambda file: file.stat().st_mtime).read_text()
    finally:
        host.uninstall()
        play_rank(0)


@contextmanager
def _saved_graphs() -> Iterator[Path]:
    """MindSpore writes the graph of the pass that is wanted, and no other, into a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = {
            "MS_DEV_SAVE_GRAPHS": "1",
            "MS_DEV_SAVE_GRAPHS_PATH": folder,
            "MS_DEV_DUMP_IR_PASSES": GRAPH,
        }
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

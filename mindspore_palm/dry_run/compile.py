"""MindSpore's own partitioner at work for any number of devices, in one process, with nothing at full size."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from ctypes.util import find_library
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from mindspore_palm.config import FinetuneConfig, Settings
from mindspore_palm.dry_run import ledger
from mindspore_palm.dry_run.graph import Slice, is_complete, read_parameters
from mindspore_palm.dry_run.ledger import BYTES, Ledger, per_layer, read_ledger
from mindspore_palm.dry_run.refusal import explain
from mindspore_palm.errors import UserError
from mindspore_palm.model.initial import placements
from mindspore_palm.parallel import host
from mindspore_palm.parallel.axes import layout
from mindspore_palm.parallel.check import check_layout, layout_of
from mindspore_palm.parallel.context import play_rank, use_graphs
from mindspore_palm.parallel.host import build
from mindspore_palm.settings import read_yaml, settings_to_yaml
from mindspore_palm.train.build import build_step

GRAPH = "validate"  # the last pass before the back end
ALLOCATORS = ("jemalloc", "tcmalloc_minimal")  # MS-28: with either, it compiles a quarter faster
COMPILED_DEPTHS = (2, 3)
"""Layers from which all others follow: in both, a layer has one beside it and one more is the same again."""


@dataclass(frozen=True)
class DryRun:
    """A compiled step, as one rank sees it."""

    layers: int
    """Of the network that this stands for."""
    compiled: tuple[int, ...]
    """Layers of the networks that were compiled."""
    ledger: Ledger
    slices: tuple[Slice, ...]
    """Every weight and every tensor of the optimizer's state, with the shape that the compiler gave it."""
    seconds: float
    """To compile, MindSpore's start included."""
    memory: int
    """Bytes that the compiling process took at most."""

    def state_bytes(self) -> int:
        """Bytes of weights and optimizer state on the device."""
        return sum(BYTES[s.dtype] * prod(s.shape) for s in self.slices)


def dry_run(settings: Settings, target: str = "GPU", rank: int = 0, whole: bool = True) -> DryRun:
    """Compiles the training step of one pass as one rank of the mesh, and stops before anything is allocated.

    Args:
        settings: of the run; ``train.micro_batch`` or the last batch size is the pass.
        target: GPU or Ascend, for which MindSpore partitions.
        rank: as which.
        whole: all layers; False compiles two and three, and adds what the third brought for each layer beyond.

    Raises:
        UserError: the settings do not fit, or ask for one device, or MindSpore refuses them.
    """
    place = layout_of(settings, target)
    if place.devices == 1:
        raise UserError("a dry run is of several devices; set parallel.pods, parallel.data or parallel.model")
    if not 0 <= rank < place.devices:
        raise UserError(
            f"--rank {rank} is not one of {place.devices:,} devices; give one from 0 to {place.devices - 1}"
        )
    check_layout(settings, place, placements)
    layers = settings.model.layers
    if whole or layers <= COMPILED_DEPTHS[-1]:
        return _compiled(settings, target, rank)
    two, three = (_compiled(_with_layers(settings, count), target, rank) for count in COMPILED_DEPTHS)
    return extrapolated(two, three, layers)


def layer_ledger(settings: Settings, target: str = "GPU", rank: int = 0) -> Ledger:
    """The exchanges of one layer: what the third adds to two. Raises as ``dry_run``."""
    two, three = (dry_run(_with_layers(settings, count), target, rank) for count in COMPILED_DEPTHS)
    return per_layer(two.ledger, three.ledger)


def extrapolated(two: DryRun, three: DryRun, layers: int) -> DryRun:
    """What a network of more layers has, from those of two and of three, its slices and its exchanges."""
    last = f"blocks.{three.layers - 1}."
    own = [s for s in three.slices if last in s.name]
    copies = [
        replace(s, name=s.name.replace(last, f"blocks.{number}."))
        for number in range(three.layers, layers)
        for s in own
    ]
    return DryRun(
        layers,
        (*two.compiled, *three.compiled),
        ledger.extrapolated(two.ledger, three.ledger, layers),
        (*three.slices, *copies),
        two.seconds + three.seconds,
        max(two.memory, three.memory),
    )


def _compiled(settings: Settings, target: str, rank: int) -> DryRun:
    start = time.monotonic()
    graph, memory = partitioned_graph(settings, target, rank)
    exchanges = read_ledger(graph, layout_of(settings, target).mesh, rank)
    seconds = time.monotonic() - start
    layers = settings.model.layers
    state = tuple(s for s in read_parameters(graph) if s.name != "global_step")
    return DryRun(layers, (layers,), exchanges, state, seconds, memory)


def partitioned_graph(settings: Settings, target: str, rank: int) -> tuple[str, int]:
    """The text of the step's graph behind the partitioner, for one rank, and the bytes that compiling took at most.

    In a process of its own: MindSpore reads only once whether to write graphs, and where (MS-26). Weights are not read,
    so a fine-tuned model is partitioned as a new one of its sizes; its dropout has no collectives.

    Raises:
        UserError: what partitions on CPU cannot be built here, or MindSpore refuses the layout; behind the sentence,
            MindSpore's own words.
    """
    build.extension()
    with tempfile.TemporaryDirectory() as folder:
        wanted = {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": folder, "MS_DEV_DUMP_IR_PASSES": GRAPH}
        if allocator := next(filter(None, map(find_library, ALLOCATORS)), None):
            wanted["LD_PRELOAD"] = " ".join([allocator, os.environ.get("LD_PRELOAD", "")]).strip()
        path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
        child = subprocess.run(  # noqa: S603 - this interpreter, and code from here
            [sys.executable, "-c", f"from {__name__} import _compile; _compile()", target, str(rank)],
            input=settings_to_yaml(settings.model_copy(update={"finetune": FinetuneConfig()})),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            cwd=folder,
            env={**os.environ, **wanted, "PYTHONPATH": path, "GLOG_v": "3"},
        )
        graphs = list(Path(folder).rglob(f"*_{GRAPH}_*.ir"))
        if child.returncode < 0:
            name = signal.Signals(-child.returncode).name
            raise UserError(
                f"the compilation was ended by {name}, as when memory runs out; give it more, or fewer layers"
            )
        if child.returncode or not graphs:
            raise UserError(explain(child.stderr, settings, layout_of(settings, target)))
        peak = int(re.findall(r"peak (\d+)", child.stdout)[-1])
        graph = max(graphs, key=lambda file: file.stat().st_mtime).read_text(encoding="utf-8", errors="replace")
        if not is_complete(graph):  # MindSpore does not look whether its file could be written
            raise UserError(
                f"MindSpore could not write its graph to {Path(folder).parent} in full: the disk is full, or files may "
                "not be that large (ulimit -f); make room, raise the limit, or set TMPDIR to another folder"
            )
        return graph, peak


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
    print("peak", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _with_layers(settings: Settings, layers: int) -> Settings:
    return settings.model_copy(update={"model": settings.model.model_copy(update={"layers": layers})})

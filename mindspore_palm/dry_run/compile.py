"""Runs MindSpore's own partitioner for any number of devices, in one process, without allocating a network."""

from __future__ import annotations

import gc
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import suppress
from ctypes.util import find_library
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from mindspore_palm.config import FinetuneConfig, Settings
from mindspore_palm.cost.workload import Workload
from mindspore_palm.dry_run import ledger
from mindspore_palm.dry_run.graph import Shard, is_complete, read_parameters
from mindspore_palm.dry_run.ledger import BYTES, Ledger, per_layer, read_ledger
from mindspore_palm.dry_run.refusal import explain
from mindspore_palm.errors import UserError
from mindspore_palm.graph_cache.key import key_of_dry_run
from mindspore_palm.graph_cache.store import GraphStore, graphs_folder
from mindspore_palm.model.palm import PaLM
from mindspore_palm.model.weights import placements
from mindspore_palm.optim import optimizer_class
from mindspore_palm.parallel import axes, host
from mindspore_palm.parallel.axes import Layout
from mindspore_palm.parallel.check import check_layout, layout_of
from mindspore_palm.parallel.context import set_rank, use_graphs
from mindspore_palm.parallel.host import build
from mindspore_palm.settings import read_yaml, settings_to_yaml
from mindspore_palm.train.build import build_step

GRAPH = "validate"  # the last compiler pass before the back end
ALLOCATORS = ("jemalloc", "tcmalloc_minimal")  # MS-28: with either, compilation takes a quarter less
SUMS = "accu_grads."  # MindSpore's name for gradients summed over the micro-batches of a pipeline
COMPILED_DEPTHS = (2, 3)
"""Numbers of layers from which deeper networks are extrapolated: the third layer adds what each later one would."""


@dataclass(frozen=True)
class DryRun:
    """The compiled step of one rank."""

    layers: int
    """Layers of the network that this describes."""
    compiled: tuple[int, ...]
    """Numbers of layers of the networks that were compiled."""
    ledger: Ledger
    shards: tuple[Shard, ...]
    """Every weight and moment, with the shape that the compiler gave it."""
    seconds: float
    """Time to compile, including MindSpore's start."""
    memory: int
    """Peak memory of the compiling process, in bytes."""

    def state_bytes(self) -> int:
        """Bytes of weights and optimizer state per device."""
        return sum(BYTES[s.dtype] * prod(s.shape) for s in self.shards)


def dry_run(settings: Settings, target: str = "GPU", rank: int = 0, all_layers: bool = True) -> DryRun:
    """Compiles the training step of one micro-batch as one rank of the mesh, and stops before anything is allocated.

    Args:
        settings: of the run; the micro-batch is ``train.micro_batch``, or the last batch size.
        target: GPU or Ascend; MindSpore partitions for it.
        rank: the rank to compile as.
        all_layers: False compiles two and three layers, and extrapolates by what the third adds.

    Raises:
        UserError: the settings do not fit, or ask for one device, or MindSpore refuses them.
    """
    layout = layout_of(settings, target, planned=True)
    if layout.devices == 1:
        raise UserError("a dry run is for several devices; set parallel.pods, parallel.data or parallel.model")
    if not 0 <= rank < layout.devices:
        raise UserError(
            f"--rank {rank} is not one of {layout.devices:,} devices; give one from 0 to {layout.devices - 1}"
        )
    check_layout(settings, layout, placements)
    layers = settings.model.layers
    if all_layers or layers <= COMPILED_DEPTHS[-1]:
        return _compiled(settings, target, rank)
    if layout.mesh.stages > 1:
        return _shallow_stages(settings, layout, target, rank)
    wanted = Workload.of(settings, target).micro_batches
    few = _with_micro_batches(settings, 2) if layout.unrolled else settings
    two, three = (_compiled(_with_layers(few, count), target, rank, wanted) for count in COMPILED_DEPTHS)
    return extrapolated(two, three, layers)


def _shallow_stages(settings: Settings, layout: Layout, target: str, rank: int) -> DryRun:
    """The dry run of a pipeline, extrapolated from runs of one and of two layers, and from the fewest micro-batches.

    All layers and micro-batches are compiled if that saves nothing, if the runs of a stage are not equally long, and in
    zero_bubble_v, whose last micro-batches have graphs of their own.
    """
    parallel, stage = settings.parallel, layout.mesh.stage(rank)
    own = [layer for layer in range(settings.model.layers) if layout.stage(layer) == stage]
    more, rest = divmod(len(own), parallel.interleave)
    if rest or parallel.schedule == axes.ZERO_BUBBLE_V or 2 * parallel.runs >= settings.model.layers:
        return _compiled(settings, target, rank)
    wanted = Workload.of(settings, target).micro_batches
    one, two = (_compiled(_with_runs_of(settings, count), target, rank, wanted) for count in (1, 2))
    pattern = re.compile(r"blocks\.\d+\.")
    some = [s for s in one.shards if pattern.search(s.name)]
    kinds = {pattern.sub("", s.name): s for s in some}
    copies = [replace(s, name=pattern.sub(f"blocks.{layer}.", s.name)) for layer in own for s in kinds.values()]
    return DryRun(
        settings.model.layers,
        (*one.compiled, *two.compiled),
        ledger.extended(one.ledger, two.ledger, more - 1),
        (*(s for s in one.shards if s not in some), *copies),
        one.seconds + two.seconds,
        max(one.memory, two.memory),
    )


def layer_ledger(settings: Settings, target: str = "GPU", rank: int = 0) -> Ledger:
    """Collectives of one layer: what a third adds to two. Raises as ``dry_run``."""
    two, three = (dry_run(_with_layers(settings, count), target, rank) for count in COMPILED_DEPTHS)
    return per_layer(two.ledger, three.ledger)


def extrapolated(two: DryRun, three: DryRun, layers: int) -> DryRun:
    """The dry run of a deeper network, shards and collectives, from those of two and of three layers."""
    last = f"blocks.{three.layers - 1}."
    last_layer = [s for s in three.shards if last in s.name]
    copies = [
        replace(s, name=s.name.replace(last, f"blocks.{number}."))
        for number in range(three.layers, layers)
        for s in last_layer
    ]
    return DryRun(
        layers,
        (*two.compiled, *three.compiled),
        ledger.extrapolated(two.ledger, three.ledger, layers),
        (*three.shards, *copies),
        two.seconds + three.seconds,
        max(two.memory, three.memory),
    )


def _compiled(settings: Settings, target: str, rank: int, micro_batches: int | None = None) -> DryRun:
    """The dry run of all layers; ``micro_batches`` of an unrolled step, if it shall have more than are compiled."""
    start = time.monotonic()
    graph, memory = partitioned_graph(settings, target, rank)
    layout = layout_of(settings, target, planned=True)
    compiled = Workload.of(settings, target).micro_batches
    unrolled = (compiled, micro_batches or compiled) if layout.unrolled else None
    collectives = read_ledger(graph, layout.mesh, rank, unrolled)
    if unrolled and layout.compute_dtype == "bfloat16":
        collectives = ledger.renamed(collectives, "Float16", "BFloat16")  # see compile_rank
    seconds = time.monotonic() - start
    layers = settings.model.layers
    state = [s for s in read_parameters(graph) if s.name != "global_step" and not s.name.startswith(SUMS)]
    if unrolled:  # the update is a graph of its own, which is not compiled
        held = {p.name: p.stage == layout.mesh.stage(rank) for p in placements(settings.model, layout)}
        state, moments = [s for s in state if held.get(s.name, True)], optimizer_class(settings.optimizer).moments
        state += [Shard(f"{m}.{s.name}", shape, s.dtype) for s in state for m, shape in moments(s.shape).items()]
    return DryRun(layers, (layers,), collectives, tuple(state), seconds, memory)


def partitioned_graph(settings: Settings, target: str, rank: int) -> tuple[str, int]:
    """The text of one rank's graph after the partitioner, and the peak memory of its compilation in bytes.

    A graph that was compiled before, on this machine and from the same code, is read from the user's cache. Weights are
    not read, so a fine-tuned model is partitioned as a new one of its sizes; its dropout has no collectives.

    Raises:
        UserError: the extension that partitions on CPU cannot be built here, or MindSpore refuses the layout. The
            message then ends with MindSpore's own words.
    """
    build.extension()
    plain = settings.model_copy(update={"finetune": FinetuneConfig()})
    folder = graphs_folder()
    if folder is None:
        return _compiled_in_child(plain, target, rank)
    store, key = GraphStore(folder), key_of_dry_run(settings_to_yaml(plain), target, rank)
    if kept := store.read(key):
        peak, compressed = kept.split(b"\n", 1)
        return zlib.decompress(compressed).decode("utf-8"), int(peak)
    graph, memory = _compiled_in_child(plain, target, rank)
    store.write(key, b"%d\n" % memory + zlib.compress(graph.encode("utf-8"), 1))
    return graph, memory


def _compiled_in_child(settings: Settings, target: str, rank: int) -> tuple[str, int]:
    """``partitioned_graph``, compiled in a process of its own: MindSpore reads only once where to write it (MS-26)."""
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.run(  # noqa: S603 - this interpreter and this module
            [sys.executable, "-c", f"from {__name__} import _compile; _compile()", target, str(rank)],
            input=settings_to_yaml(settings),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            cwd=folder,
            env=child_environment(folder),
        )
        graphs = list(Path(folder).rglob(f"*_{GRAPH}_*.ir"))
        if child.returncode < 0:
            name = signal.Signals(-child.returncode).name
            raise UserError(
                f"the compilation was ended by {name}, as when memory runs out; give it more, or fewer layers"
            )
        if child.returncode or not graphs:
            raise UserError(explain(child.stderr, settings, layout_of(settings, target, planned=True)))
        peak = int(re.findall(r"peak (\d+)", child.stdout)[-1])
        graph = max(graphs, key=lambda file: file.stat().st_mtime).read_text(encoding="utf-8", errors="replace")
        if not is_complete(graph):  # MindSpore does not look whether its file could be written
            raise UserError(
                f"MindSpore could not write its graph to {Path(folder).parent} in full: the disk is full, or files may "
                "not be that large (ulimit -f); make room, raise the limit, or set TMPDIR to another folder"
            )
        return graph, peak


def child_environment(folder: str) -> dict[str, str]:
    """Environment variables of a process that compiles, and writes its graph to a folder."""
    variables = {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": folder, "MS_DEV_DUMP_IR_PASSES": GRAPH}
    if allocator := next(filter(None, map(find_library, ALLOCATORS)), None):
        variables["LD_PRELOAD"] = " ".join([allocator, os.environ.get("LD_PRELOAD", "")]).strip()
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, **variables, "PYTHONPATH": path, "GLOG_v": "3"}


def _compile() -> None:
    """Compiles in the child process: settings from standard input, target and rank from the command line."""
    gc.disable()  # MindSpore's parser makes objects by the million, and almost none of them in cycles
    settings = Settings.model_validate(read_yaml(sys.stdin.read(), "the settings of a dry run"))
    use_graphs()
    compile_rank(settings, sys.argv[1], int(sys.argv[2]))
    print("peak", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def compile_rank(settings: Settings, target: str, rank: int) -> None:
    """Has MindSpore partition the step of one rank in this process, which then plays that rank."""
    layout = layout_of(settings, target, planned=True)
    host.install_dry_run(rank, layout.devices, target)
    set_rank(rank)
    if layout.unrolled and layout.compute_dtype == "bfloat16":  # MS-64: float16 has as many bytes
        layout = replace(layout, compute_dtype="float16")
    with axes.layout(layout), suppress(host.DryRunComplete):
        batch = settings.train.batch_ramp()[-1][1]
        palm, step = build_step(settings, accumulate=layout.unrolled)
        if not layout.unrolled:  # whose network is shared by all micro-batches already
            share_blocks(palm)
        rows = (batch if layout.unrolled else settings.train.micro_batch_of(batch)) // layout.shards("batch")
        tokens = np.zeros((rows, settings.data.seq_len), np.int32)
        step(tokens, tokens)


def share_blocks(palm: PaLM) -> None:
    """Has MindSpore parse and infer one block for all, which differ in their weights alone; the graph stays the same.

    These are the attributes that ``lazy_inline`` with the policy "front" gives to a Cell. Its own key of a Cell has the
    names of its weights, and would share nothing. MS-72: the policy inlines the blocks before they are partitioned.
    """
    for block in palm.blocks:
        block.cell_init_args, block.no_inline = f"lazy_inline_{type(block).__name__}", False


def _with_runs_of(settings: Settings, layers: int) -> Settings:
    """The settings with so many layers in each run of a pipeline, and as few micro-batches as it takes."""
    runs = [layers] * settings.parallel.runs
    parallel = settings.parallel.model_copy(update={"stage_layers": runs})
    few = _with_micro_batches(settings, parallel.least_micro_batches)
    return _with_layers(few, sum(runs)).model_copy(update={"parallel": parallel})


def _with_micro_batches(settings: Settings, count: int) -> Settings:
    train = settings.train.model_copy(update={"batch_size": settings.train.micro_batch * count})
    return settings.model_copy(update={"train": train})


def _with_layers(settings: Settings, layers: int) -> Settings:
    return settings.model_copy(update={"model": settings.model.model_copy(update={"layers": layers})})

"""The one owner of MindSpore's global state: device, mode, workers and parallel context."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mindspore as ms
from mindspore import nn
from mindspore.parallel.auto_parallel import AutoParallel

from mindspore_palm import console, cuda, graph_cache
from mindspore_palm.devices import DEVICES
from mindspore_palm.errors import UserError, same_command
from mindspore_palm.machine import processors
from mindspore_palm.parallel.axes import PER_STEP, PODS_PER_STEP, Axes, Layout, current_layout
from mindspore_palm.parallel.workers import check_workers, is_worker, speaks
from mindspore_palm.preflight import GRAPH_THREADS, NO_MEMORY, check_threads

DEPTH = 100_000  # MS-19: nested calls of a graph; MindSpore's own limit of 1,000 is reached at some 100 layers
FEWEST_THREADS, MOST_THREADS = 2, 30  # of MindSpore: it warns of one at each start, and has at most 30 by itself
LOST = re.compile(r"worker \d+ \(pid \d+\) (is gone|has not come for \d+ s)")  # from host/shared_memory.cc

_rank = 0


@dataclass(frozen=True)
class Device:
    """The device that a run computes on."""

    name: str
    reason: str
    """Why it was chosen."""


def use_graphs() -> None:
    """Sets graph mode: networks are compiled when they are called, on any device.

    MindSpore starts in eager mode, which fails beside NumPy 2 (MS-18) and ignores sharding strategies.
    """
    use_processors()
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_recursion_limit(DEPTH)
    graph_cache.install()


def use_processors() -> None:
    """Gives MindSpore as many threads as this process has processors, unless their number has been set.

    MS-73: MindSpore counts the processors of the machine. Where a process may use fewer, as in a container, its threads
    take those from one another, and one of them may wait by spinning: two of 16 processors then do the work of one.
    """
    with contextlib.suppress(RuntimeError):  # it can be set once in a process
        ms.device_context.cpu.op_tuning.threads_num(min(max(processors(), FEWEST_THREADS), MOST_THREADS))


def this_rank() -> int:
    """Rank of this process in the mesh; 0 for a single process."""
    return _rank


def open_device(wanted: str = "auto", setting: str = "train.device", tf32: bool = False) -> Device:
    """Chooses the device and sets graph mode.

    Args:
        wanted: as for ``choose_device``.
        setting: as for ``choose_device``.
        tf32: whether matmuls of float32 may use TF32 on a GPU.

    Raises:
        UserError: the device does not exist, or MindSpore could not start its threads.
    """
    check_threads(GRAPH_THREADS)
    use_graphs()
    target, reason = choose_device(wanted, setting)
    ms.set_device(target)
    if target == "GPU":
        ms.device_context.gpu.op_precision.matmul_allow_tf32(tf32)
        if speaks() and (note := cuda.first_use()):
            print(f"note: {note}", file=sys.stderr)
    return Device(target, reason)


def choose_device(wanted: str, setting: str = "train.device") -> tuple[str, str]:
    """The device type to run on, and why.

    Args:
        wanted: a device type, or auto.
        setting: the setting or option that asks for it.

    Raises:
        UserError: the machine has no such device.
    """
    available = [target for target in DEVICES if _available(target)]
    gpu = cuda.problem() if "GPU" not in available else ""
    if wanted != "auto" and wanted not in available:
        if wanted == "GPU" and gpu:
            raise UserError(f"{setting} = GPU: {gpu}; or set {setting}=auto")
        raise UserError(
            f"{setting} = {wanted}: MindSpore {ms.__version__} finds no {wanted} on this machine (it finds "
            f"{', '.join(available)}); set {setting}=auto"
        )
    if wanted != "auto":
        return wanted, "as set"
    passed_over = f", but no GPU: {gpu}" if gpu and cuda.present() else ""
    return available[0], f"the fastest kind that MindSpore {ms.__version__} finds here{passed_over}"


def join_workers(devices: int, target: str) -> int:
    """Makes this process one of the workers that msrun started, and returns its rank. On one device, does nothing.

    Raises:
        UserError: the number of workers is not that of the devices, or partitioned networks cannot run here.
    """
    global _rank
    check_workers(devices)
    if devices == 1:
        return 0
    from mindspore.communication import get_group_size, get_rank, init

    if not is_worker():
        raise UserError(f"a mesh of {devices} devices needs as many workers: start the command with msrun")
    init()
    _rank = get_rank()
    if _rank != 0:
        console.mute()
    if target == "CPU":  # MindSpore itself partitions for GPU and Ascend only
        from mindspore_palm.parallel import host

        host.install(_rank, get_group_size())
    return _rank


@contextlib.contextmanager
def lost_workers() -> Iterator[None]:
    """Turns the error of a collective whose other worker has ended or hangs into one sentence.

    Raises:
        UserError: another worker was killed or stopped; names it.
    """
    try:
        yield
    except RuntimeError as error:
        lost = LOST.search(str(error))
        if not lost:
            raise
        raise UserError(f"{lost.group()}: this worker cannot continue without it, and ends too") from None


@contextlib.contextmanager
def out_of_memory() -> Iterator[None]:
    """Turns an error for lack of memory into one sentence.

    Raises:
        UserError: memory did not suffice; names what to make smaller.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        raise UserError(
            "the memory of this device did not suffice; make train.micro_batch, train.batch_size or the model smaller, "
            f"or the mesh larger. After that, {same_command()} resumes from the last checkpoint"
        ) from None


def set_rank(rank: int) -> None:
    """Gives this process a rank without workers: for dry runs, and for tests in one process."""
    global _rank
    _rank = rank


def partition(cell: nn.Cell, *inputs: Axes) -> nn.Cell:
    """Has MindSpore partition a network by the strategies of its ops when it is first called. On one device, a no-op.

    Args:
        cell: the network.
        inputs: logical axes of each of its inputs; a worker passes its own shard of them.

    The settings are PaLM's, and each of them matters. ``gradients_mean`` is off, because the loss is a mean over the
    global batch already; if it were on, gradients would silently be divided by the data shards. Full sharding has no
    threshold (MS-09), and its groups stay inside a pod unless set otherwise. Every worker feeds its own rows of a
    batch. MS-03: some settings have no public setter. MS-52: MindSpore has announced the end of all of this.
    """
    layout = current_layout()
    if layout.devices == 1:
        return cell
    parallel = AutoParallel(cell, parallel_mode="semi_auto")
    parallel.dataset_strategy(layout.strategy(*inputs))
    value: Any
    for name, value in parallel_settings(layout).items():
        if name == "hsdp":
            parallel.hsdp(**value)
        else:
            setattr(parallel, f"_{name}", value)
    if layout.mesh.stages > 1:
        interleave = len(layout.stage_layers) > layout.mesh.stages
        parallel.pipeline(layout.mesh.stages, interleave=interleave, scheduler=layout.schedule)
    return parallel


def parallel_settings(layout: Layout) -> dict[str, object]:
    """MindSpore's parallel settings by name, as ``partition`` sets them and a run prints them."""
    settings: dict[str, object] = {
        "device_num": layout.devices,
        "global_rank": _rank,
        "gradients_mean": False,
    }
    if layout.weight_shards > 1:
        # MS-09: by default, weights of less than 64 KB are replicated
        level = _optimizer_level(layout)
        settings["hsdp"] = {"shard_size": layout.weight_shards, "threshold": 0, "optimizer_level": level}
    if layout.reduce_dtype != "float32":
        settings["gradient_fp32_sync"] = False
    return settings


def _optimizer_level(layout: Layout) -> str:
    """MindSpore's level of full sharding.

    level1 keeps weights gathered from the forward to the backward pass, level3 gathers them twice. In an
    unrolled step, level1 gathers and reduce-scatters once; level2 reduce-scatters after each micro-batch, and level3
    gathers for each as well.
    """
    if layout.reduce_gradients == PER_STEP:
        return "level1"
    if layout.recompute == "block":
        return "level3"
    return "level2" if layout.reduce_gradients == PODS_PER_STEP else "level1"


def _available(target: str) -> bool:
    if target == "GPU" and cuda.problem():
        return False
    try:
        return target == "CPU" or bool(ms.hal.is_available(target))
    except (ValueError, RuntimeError):  # a wheel that does not know this device type
        return False

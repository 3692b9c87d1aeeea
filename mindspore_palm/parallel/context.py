"""The one owner of MindSpore's global state: device, mode, workers and parallel context."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import mindspore as ms
from mindspore import nn
from mindspore.parallel.auto_parallel import AutoParallel

from mindspore_palm import console
from mindspore_palm.errors import UserError, same_command
from mindspore_palm.parallel.axes import Axes, Layout, current_layout
from mindspore_palm.parallel.workers import check_workers, is_worker
from mindspore_palm.surroundings import GRAPH_THREADS, NO_MEMORY, check_threads

DEVICE_TARGETS = ("Ascend", "GPU", "CPU")
DEPTH = 100_000  # MS-19: calls within calls of a graph; MindSpore's own 1,000 end at some 100 layers
LOST = re.compile(r"worker \d+ \(pid \d+\) (is gone|has not come for \d+ s)")  # words of the host's exchange

_rank = 0


@dataclass(frozen=True)
class Device:
    """What a run computes on."""

    name: str
    reason: str
    """Why this one was taken."""


def use_graphs() -> None:
    """Has networks compiled when they are called, on whatever device.

    MindSpore starts in eager mode, which fails beside NumPy 2 (MS-18), and in which no sharding strategy counts.
    """
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_recursion_limit(DEPTH)


def this_rank() -> int:
    """This process's place in the mesh; 0 for a process alone."""
    return _rank


def open_device(wanted: str = "auto", setting: str = "train.device") -> Device:
    """Chooses the device and sets graph mode. Nobody else touches MindSpore's context. Arguments as ``choose_device``.

    Raises:
        UserError: the wanted device is not there, or MindSpore could not start its threads.
    """
    check_threads(GRAPH_THREADS)
    use_graphs()
    kind, reason = choose_device(wanted, setting)
    ms.set_device(kind)
    return Device(kind, reason)


def choose_device(wanted: str, setting: str = "train.device") -> tuple[str, str]:
    """The kind of device to run on, and why.

    Args:
        wanted: a kind, or auto.
        setting: the name under which the user asked for it.

    Raises:
        UserError: the wanted one is not there.
    """
    there = [kind for kind in DEVICE_TARGETS if _available(kind)]
    if wanted != "auto" and wanted not in there:
        raise UserError(
            f"{setting} = {wanted}: MindSpore {ms.__version__} finds no {wanted} on this machine (it finds "
            f"{', '.join(there)}); set {setting}=auto"
        )
    if wanted != "auto":
        return wanted, "as set"
    return there[0], f"the fastest kind that MindSpore {ms.__version__} finds here"


def join_workers(devices: int, kind: str) -> int:
    """Makes this process one of the workers that msrun started; returns its rank. On one device, does nothing.

    Raises:
        UserError: there are not as many workers as the mesh has devices, or partitioned networks cannot run here.
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
    if kind == "CPU":  # MindSpore partitions for GPU and Ascend alone
        from mindspore_palm.parallel import host

        host.install(_rank, get_group_size())
    return _rank


@contextlib.contextmanager
def lost_workers() -> Iterator[None]:
    """Says in one sentence that another worker has ended or hangs: what the error is when one is killed or stopped.

    Raises:
        UserError: names the worker.
    """
    try:
        yield
    except RuntimeError as error:
        gone = LOST.search(str(error))
        if not gone:
            raise
        raise UserError(f"{gone.group()}: this worker cannot go on without it, and ends too") from None


@contextlib.contextmanager
def out_of_memory() -> Iterator[None]:
    """Says in one sentence that there was not enough memory.

    Raises:
        UserError: says so, and what to make smaller.
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


def play_rank(rank: int) -> None:
    """Takes the place of a rank without workers: for dry runs and tests of one process."""
    global _rank
    _rank = rank


def partition(cell: nn.Cell, *inputs: Axes) -> nn.Cell:
    """Has MindSpore cut a network by the strategies of its ops, when it is first called. On one device, the network.

    Args:
        cell: the network.
        inputs: logical axes of each of its inputs; a worker calls it with its own part of them.

    The settings are PaLM's, and each has been seen to matter: ``gradients_mean`` stays off, as the loss is a mean over
    the whole batch already (on, gradients are silently divided by the data shards); full sharding has no threshold
    (MS-09), and its groups stay inside a pod unless told otherwise; every worker brings its
    own rows of a batch. MS-03: some have no public setter. MS-52: all of this is announced to go.
    """
    layout = current_layout()
    if layout.devices == 1:
        return cell
    whole = AutoParallel(cell, parallel_mode="semi_auto")
    whole.dataset_strategy(layout.strategy(*inputs))
    for name, value in parallel_settings(layout).items():
        if name == "hsdp":
            whole.hsdp(**value)
        else:
            setattr(whole, f"_{name}", value)
    return whole


def parallel_settings(layout: Layout) -> dict[str, object]:
    """All of MindSpore's parallel context that is set, by name: what ``partition`` does and a run prints."""
    settings: dict[str, object] = {
        "device_num": layout.devices,
        "global_rank": _rank,
        "gradients_mean": False,
    }
    if layout.weight_shards > 1:
        # level3 gathers weights a second time for the backward pass, level1 keeps them from the forward pass
        level = "level3" if layout.recompute == "block" else "level1"
        # MS-09: by default, weights of less than 64 KB stay whole
        settings["hsdp"] = {"shard_size": layout.weight_shards, "threshold": 0, "optimizer_level": level}
    return settings


def _available(kind: str) -> bool:
    try:
        return kind == "CPU" or bool(ms.hal.is_available(kind))
    except (ValueError, RuntimeError):  # a wheel that does not know the kind
        return False

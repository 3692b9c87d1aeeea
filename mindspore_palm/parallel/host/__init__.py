"""MindSpore's semi-auto parallel in worker processes on CPU, and dry runs of it for any number of devices.

MS-01: MindSpore partitions networks for Ascend and GPU alone. Here it does on a machine that has neither: in
several processes, which train the parts on CPU, or in one, which partitions as if it were one of thousands and stops.
For development, tests and dry runs: it is not fast, all workers must be on one machine, and it leans on internals of
MindSpore 2.10. The first use builds a C++ library (half a minute; needs g++ and ninja), which is kept.

A run, under ``msrun --worker_num 4 --local_worker_num 4 ...``::

    use_graphs()
    ms.set_device("CPU")
    init()
    host.install(get_rank(), get_group_size())
    ms.set_auto_parallel_context(parallel_mode="semi_auto_parallel", device_num=4, ...)
    network(data)  # and any other, before or behind, partitioned or not

A dry run, in one process::

    host.install_dry_run(rank=5, devices=6144)
    ms.set_auto_parallel_context(parallel_mode="semi_auto_parallel", device_num=6144, ...)
    try:
        network.compile(data)
    except host.DryRunComplete:
        ...

There ``global_rank`` may be any rank of the mesh; MindSpore by itself refuses to be told one above 4095.
"""

from __future__ import annotations

import atexit
import os

from mindspore_palm.errors import UserError
from mindspore_palm.parallel.host import build, compilation
from mindspore_palm.parallel.host.compilation import DryRunComplete

__all__ = ["TARGETS", "DryRunComplete", "install", "install_dry_run", "uninstall"]

TARGETS = ("GPU", "Ascend")
"""What a network can be partitioned for. Ascend wants groups that fill servers of eight evenly."""

PATIENCE = 600.0
"""Seconds that a worker waits for another one that is alive; MINDSPORE_PALM_HOST_PATIENCE sets another number."""


def install(rank: int, devices: int, target: str = "GPU") -> None:
    """Has this worker compile partitioned networks for `target` and run them on CPU, with the other workers.

    Called once, in all workers, behind ``mindspore.communication.init()``. A worker that waits for another notices
    within a second when that one has ended, and fails with a sentence that names it.

    Raises:
        UserError: the library cannot be built or does not fit this MindSpore, there is no such target, or the workers
            cannot reach each other.
    """
    if os.environ.get("MS_ROLE") == "MS_SCHED":  # msrun runs the script in its scheduler, too (MS-45)
        return
    _check(rank, devices, target)
    extension = build.extension()
    try:
        extension.install(rank, devices, _patience())
    except RuntimeError as error:
        raise UserError(str(error)) from None
    atexit.register(_end, os.getpid())
    compilation.take_over(compilation.Target(extension, target, dry=False))


def install_dry_run(rank: int, devices: int, target: str = "GPU") -> None:
    """Has this process partition networks as worker `rank` of `devices` would; each ends with `DryRunComplete`.

    May be called again, for another rank or number of devices; `uninstall` ends it.

    Raises:
        UserError: as `install`.
    """
    _check(rank, devices, target)
    extension = build.extension()
    extension.install_dry_run(rank, devices)
    compilation.take_over(compilation.Target(extension, target, dry=True))


def uninstall() -> None:
    """MindSpore compiles as it did before `install` or `install_dry_run`."""
    compilation.give_back()


def _check(rank: int, devices: int, target: str) -> None:
    if target not in TARGETS:
        raise UserError(f"networks can be partitioned for {' or '.join(TARGETS)}, not for {target!r}")
    if not 0 <= rank < devices:
        raise UserError(f"rank {rank} is not one of {devices} devices: give one from 0 to {devices - 1}")


def _patience() -> float:
    text = os.environ.get("MINDSPORE_PALM_HOST_PATIENCE", str(PATIENCE))
    try:
        return float(text)
    except ValueError:
        raise UserError(f"MINDSPORE_PALM_HOST_PATIENCE is {text!r}: set a number of seconds") from None


def _end(pid: int) -> None:
    if os.getpid() == pid:  # a forked process ends for itself alone
        build.extension().end()

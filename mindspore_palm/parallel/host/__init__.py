"""MindSpore's semi-auto parallel in worker processes on CPU, and dry runs of it for any number of devices.

MS-01: MindSpore partitions networks for Ascend and GPU only. Here it does so on a machine that has neither: in several
processes, which run the partitions on CPU, or in one process, which partitions as one of thousands would, and stops.
This is for development, tests and dry runs: it is not fast, all workers must run on one machine, and it depends on
internals of MindSpore 2.10. The first use builds a C++ library (half a minute; needs g++ and ninja), which is kept.

A run, under ``msrun --worker_num 4 --local_worker_num 4 ...``::

    use_graphs()
    ms.set_device("CPU")
    init()
    host.install(get_rank(), get_group_size())
    ms.set_auto_parallel_context(parallel_mode="semi_auto_parallel", device_num=4, ...)
    network(data)  # and any others, before or after, partitioned or not

A dry run, in one process::

    host.install_dry_run(rank=5, devices=6144)
    ms.set_auto_parallel_context(parallel_mode="semi_auto_parallel", device_num=6144, ...)
    try:
        network.compile(data)
    except host.DryRunComplete:
        ...

In a dry run, ``global_rank`` may be any rank of the mesh; MindSpore itself rejects ranks above 4095.
"""

from __future__ import annotations

import atexit
import os

from mindspore_palm.errors import UserError
from mindspore_palm.parallel.host import build, compilation
from mindspore_palm.parallel.host.compilation import DryRunComplete

__all__ = ["TARGETS", "DryRunComplete", "install", "install_dry_run", "uninstall"]

TARGETS = ("GPU", "Ascend")
"""Targets that networks can be partitioned for. Ascend needs groups that fill servers of eight evenly."""

PATIENCE = 600.0
"""Seconds that a worker waits for another one that is alive; MINDSPORE_PALM_HOST_PATIENCE overrides it."""


def install(rank: int, devices: int, target: str = "GPU") -> None:
    """Has this worker compile partitioned networks for `target` and run them on CPU, together with the other workers.

    Every worker calls it once, after ``mindspore.communication.init()``. A worker that waits for one that has ended
    notices it within a second, and fails with a message that names it.

    Raises:
        UserError: the library cannot be built or does not fit this MindSpore, `target` is unknown, or workers cannot
            reach each other.
    """
    if os.environ.get("MS_ROLE") == "MS_SCHED":  # msrun runs the script in its scheduler as well (MS-45)
        return
    _check(rank, devices, target)
    extension = build.extension()
    try:
        extension.install(rank, devices, _patience())
    except RuntimeError as error:
        raise UserError(str(error)) from None
    atexit.register(_end, os.getpid())
    compilation.install(compilation.Target(extension, target, dry=False))


def install_dry_run(rank: int, devices: int, target: str = "GPU") -> None:
    """Has this process partition networks as worker `rank` of `devices` would; each one raises `DryRunComplete`.

    It may be called again for another rank or number of devices; `uninstall` undoes it.

    Raises:
        UserError: as for `install`.
    """
    _check(rank, devices, target)
    extension = build.extension()
    extension.install_dry_run(rank, devices)
    compilation.install(compilation.Target(extension, target, dry=True))


def uninstall() -> None:
    """Undoes `install` and `install_dry_run`: MindSpore compiles as before."""
    compilation.uninstall()


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
    if os.getpid() == pid:  # a forked process does not end for its parent
        build.extension().end()

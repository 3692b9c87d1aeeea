"""Processors and memory that this process may use: the limits of its container, not the sizes of the host.

Linux limits a container by control groups. Version 2 has one hierarchy, version 1 has one for each controller; in both,
a process is bound by its own group and by every group above it.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

SELF = Path("proc/self/cgroup")
MOUNT = Path("sys/fs/cgroup")


def processors(root: Path = Path("/")) -> int:
    """Processors that this process may use: of its affinity, and of its control groups' share of time; 1 at least."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu", root):
        quota, period = _cpu_share(group)
        if quota > 0 < period:
            count = min(count, int(quota / period))
    return max(1, count)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process and its children can still take: of the host, its groups and ``ulimit -v``.

    What a group holds in its file cache can be given back, so it counts as free.
    """
    free = [psutil.virtual_memory().available]
    for group in _groups("memory", root):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.high", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, taken = _number(group / limit), _number(group / used)
            if most is not None and taken is not None:
                free.append(most - taken + _statistic(group / "memory.stat", cached))
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        free.append(most - psutil.Process().memory_info().vms)
    return max(0, min(free))


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's control groups for a controller, from its own up to the root.

    Inside a container, the path that the kernel names may be the host's. The mount is then the container's own group.
    """
    with contextlib.suppress(OSError):
        for line in (root / SELF).read_text(encoding="utf-8", errors="replace").splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" and not controllers:
                mounts = [root / MOUNT, root / MOUNT / "unified"]
            elif controller in controllers.split(","):
                mounts = [root / MOUNT / controller, root / MOUNT / controllers]
            else:
                continue
            for mount in mounts:
                own = mount / path.lstrip("/")
                yield from (folder for folder in (own, *own.parents) if folder == mount or mount in folder.parents)


def _cpu_share(group: Path) -> tuple[float, float]:
    """Microseconds of processor time in a period, and the period; (0, 0) where there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text(encoding="utf-8", errors="replace").split()
        return float(quota), float(period)  # no limit is the word max, which is no number
    quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return (quota or 0, period or 0)


def _number(file: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text(encoding="utf-8", errors="replace"))
    return None


def _statistic(file: Path, name: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return 0

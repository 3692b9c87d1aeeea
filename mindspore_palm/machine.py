"""Processors and memory that this process may use: the limits of its container, not those of the host.

Linux limits a container by control groups. Version 2 has one hierarchy, version 1 has one per controller. In both, the
limits of a process are those of its own group and of every group above it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

SELF = Path("proc/self/cgroup")
MOUNT = Path("sys/fs/cgroup")
KIB = 1024  # bytes; Linux writes kB


def processors(root: Path = Path("/")) -> int:
    """Number of processors that this process may use, by its affinity and its control groups' CPU quota; at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu", root):
        quota, period = _cpu_quota(group)
        if quota > 0 < period:
            count = min(count, int(quota / period))
    return max(1, count)


def processor_name(root: Path = Path("/")) -> str:
    """Name of the processor's model; of its architecture where the system does not say."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process and its children can still allocate, by host, control groups and ``ulimit -v``.

    A group's file cache can be reclaimed, so it counts as free.
    """
    free = [psutil.virtual_memory().available]
    for group in _groups("memory", root):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.high", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            maximum, current = _number(group / limit), _number(group / used)
            if maximum is not None and current is not None:
                free.append(maximum - current + _statistic(group / "memory.stat", cached))
    maximum, _ = resource.getrlimit(resource.RLIMIT_AS)
    if maximum != resource.RLIM_INFINITY:
        free.append(maximum - psutil.Process().memory_info().vms)
    return max(0, min(free))


def return_free_memory() -> None:
    """Gives the system back what this process has freed, which glibc keeps between blocks that are in use.

    Compiling a graph and preparing text leave 50 to 160 MB so. Takes milliseconds; does nothing with another C library.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory() -> int:
    """The most bytes of memory that this process has held at once, so far; 0 where the system does not say."""
    return _of_process("VmHWM")


def resident_memory() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    return _of_process("VmRSS")


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's control groups for a controller, from its own group up to the root.

    Inside a container, the kernel may report the host's path. The mount is then the container's own group.
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
                group = mount / path.lstrip("/")
                yield from (folder for folder in (group, *group.parents) if folder == mount or mount in folder.parents)


def _cpu_quota(group: Path) -> tuple[float, float]:
    """Microseconds of processor time per period, and the period; (0, 0) if there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text(encoding="utf-8", errors="replace").split()
        return float(quota), float(period)  # without a limit, the quota is the word max: a ValueError
    return _number(group / "cpu.cfs_quota_us") or 0, _number(group / "cpu.cfs_period_us") or 0


def _number(file: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text(encoding="utf-8", errors="replace"))
    return None


def _of_process(name: str) -> int:
    """A number of bytes that Linux lists for this process, in kB; 0 where it does not."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * KIB
    return 0


def _statistic(file: Path, name: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return 0

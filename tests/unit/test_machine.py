"""The limits of a container are the size of the machine: both versions of control groups, as files in a folder."""

from __future__ import annotations

import os
import platform
import resource

import psutil
import pytest

from mindspore_palm.config import Settings
from mindspore_palm.cost import memory
from mindspore_palm.errors import UserError
from mindspore_palm.machine import (
    available_memory,
    peak_memory,
    processors,
    resident_memory,
    return_free_memory,
)
from mindspore_palm.parallel import fused

CORES = len(os.sched_getaffinity(0))
MB = 2**20


def files(root, contents):
    for name, text in contents.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


V2 = {"proc/self/cgroup": "0::/job/step", "sys/fs/cgroup/job/step/cgroup.procs": ""}
V1 = {"proc/self/cgroup": "9:name=systemd:/\n4:memory:/job\n2:cpu,cpuacct:/job"}
# Version 1 in Docker: the path is the host's, and the mount is the container's own group.
DOCKER = {"proc/self/cgroup": "4:memory:/docker/0123\n1:cpu:/docker/0123"}


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


@pytest.mark.parametrize(
    ("contents", "count"),
    [
        ({}, 64),
        ({**V2}, 64),
        ({**V2, "sys/fs/cgroup/job/step/cpu.max": "max 100000"}, 64),
        ({**V2, "sys/fs/cgroup/job/step/cpu.max": "250000 100000"}, 2),
        ({**V2, "sys/fs/cgroup/job/step/cpu.max": "50000 100000"}, 1),
        ({**V2, "sys/fs/cgroup/job/cpu.max": "300000 100000"}, 3),  # limit of the parent group
        ({**V2, "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),  # limit at the mount: the container's own group
        ({**V2, "sys/fs/cgroup/job/step/cpu.max": "nonsense"}, 64),
        ({**V1, "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "-1"}, 64),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "500000",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            5,
        ),
        (
            {
                **DOCKER,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "600000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            6,
        ),
    ],
)
def test_processors_are_the_share_of_the_container(tmp_path, many_cores, contents, count):
    assert processors(files(tmp_path, contents)) == count


def test_the_affinity_of_the_process_is_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8})
    assert processors(tmp_path) == 3


@pytest.mark.parametrize(
    ("contents", "megabytes"),
    [
        ({**V2, "sys/fs/cgroup/job/step/memory.max": 100 * MB, "sys/fs/cgroup/job/step/memory.current": 30 * MB}, 70),
        ({**V2, "sys/fs/cgroup/job/memory.max": 50 * MB, "sys/fs/cgroup/job/memory.current": 10 * MB}, 40),
        ({**V2, "sys/fs/cgroup/memory.high": 60 * MB, "sys/fs/cgroup/memory.current": 10 * MB}, 50),
        (
            {
                **V2,
                "sys/fs/cgroup/memory.max": 100 * MB,
                "sys/fs/cgroup/memory.current": 90 * MB,
                "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {20 * MB}\nactive_file 7",
            },
            30,  # the file cache can be reclaimed
        ),
        (
            {
                **V1,
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": 80 * MB,
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": 30 * MB,
                "sys/fs/cgroup/memory/job/memory.stat": f"total_inactive_file {5 * MB}",
            },
            55,
        ),
        (
            {
                **DOCKER,
                "sys/fs/cgroup/memory/memory.limit_in_bytes": 80 * MB,
                "sys/fs/cgroup/memory/memory.usage_in_bytes": 30 * MB,
            },
            50,
        ),
        ({**V2, "sys/fs/cgroup/memory.max": 10 * MB, "sys/fs/cgroup/memory.current": 11 * MB}, 0),
    ],
)
def test_memory_is_what_the_container_has_left(tmp_path, contents, megabytes):
    assert available_memory(files(tmp_path, contents)) == megabytes * MB


@pytest.mark.parametrize("limit", ["max", 2**63 - 4096, "nonsense"])
def test_without_a_limit_the_hosts_memory_counts(tmp_path, limit):
    contents = {
        **V1,
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": limit,
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": 30 * MB,
    }
    free = psutil.virtual_memory().available
    assert available_memory(files(tmp_path, contents)) == pytest.approx(free, rel=0.2)


def test_a_limit_of_the_address_space_counts(tmp_path, monkeypatch):
    used = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + 64 * MB, resource.RLIM_INFINITY))
    assert 0 < available_memory(tmp_path) <= 64 * MB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no malloc_trim")
def test_memory_that_was_freed_between_blocks_in_use_is_returned():
    blocks = [bytes([i % 256]) * 2**16 for i in range(2000)]  # smaller than those that glibc maps one by one
    kept, held = blocks[::50], resident_memory()
    del blocks
    return_free_memory()
    assert resident_memory() < held - 100 * 10**6 and len(kept) == 40


def test_the_peak_stays_when_memory_is_freed():
    before = peak_memory()
    block = bytes([1]) * max(2**26, before - resident_memory() + 2**26)
    during = peak_memory()
    assert during > before and len(block) >= 2**26
    del block
    assert peak_memory() > during - 10**7  # Linux counts each processor's pages in batches


def test_a_run_that_is_larger_than_its_container_is_refused(tmp_path, monkeypatch):
    root = files(tmp_path, {**V2, "sys/fs/cgroup/memory.max": 90 * MB, "sys/fs/cgroup/memory.current": 0})
    monkeypatch.setattr(memory, "available_memory", lambda: available_memory(root))
    monkeypatch.setattr(memory, "resident_memory", lambda: 0)
    monkeypatch.setenv(fused.SWITCH, "0")  # the same estimate with and without a compiler
    with pytest.raises(UserError, match=r"this run needs about 1\.8\d GB on one device .*94\.4 MB of memory are free"):
        memory.check_memory(Settings.model_validate({"train": {"batch_size": 8}}))


def test_the_memory_of_each_worker_process_counts(monkeypatch):
    from mindspore_palm.parallel.check import layout_of

    tiny = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 8, "d_ff": 32, "vocab_size": 300}
    settings = Settings.model_validate({"model": tiny, "parallel": {"data": 16}, "data": {"seq_len": 16}})
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * 10**9)
    with pytest.raises(UserError, match=r"needs about 4\.8 GB for 16 workers .*make the mesh .* smaller"):
        memory.check_memory(settings, layout_of(settings))

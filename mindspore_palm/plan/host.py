"""The CPU of this machine as a machine to plan for: measured, not looked up."""

from __future__ import annotations

import time

import numpy as np
import psutil

from mindspore_palm.config import Settings
from mindspore_palm.cost.workload import Workload
from mindspore_palm.errors import UserError
from mindspore_palm.plan.machines import GB, GIB, TERA, Machine
from mindspore_palm.plan.search import check_fits
from mindspore_palm.plan.step_time import step_time

STREAMED = 1 << 26  # bytes of a copy: beyond most caches
REPEATS = 5
LINK = 1.0  # GB/s; a machine needs a number, and one device sends nothing


def measure_bandwidth() -> float:
    """Bytes per second that a copy in memory reads and writes; the best of five."""
    source = np.ones(STREAMED, np.uint8)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * STREAMED / best


def host_machine(peak: float, bandwidth: float, peak_source: str, title: str = "the CPU of this machine") -> Machine:
    """A machine of one CPU, at full efficiency.

    Args:
        peak: FLOP/s of float32 matmuls.
        bandwidth: bytes per second of a copy in memory.
        peak_source: where the peak is from.
        title: of the machine.
    """
    unused = "not used: the machine is one device"
    plain = "MindSpore's CPU backend runs the plain path of the model"
    return Machine(
        title=title,
        target="CPU",
        peak_tflops=peak / TERA,
        memory_gib=psutil.virtual_memory().total / GIB,
        memory_gb_s=bandwidth / GB,
        matmul_efficiency=1.0,
        memory_efficiency=1.0,
        tile=[1, 1, 1],
        tiles_at_once=1,
        fused_attention=False,
        fused_elementwise=False,
        gradient_bytes=4,
        server_devices=1,
        server_gb_s=LINK,
        network_gb_s=LINK,
        sources={
            "peak_tflops": peak_source,
            "memory_gib": "taken over from the machine that wrote this file",
            "memory_gb_s": "taken over from the machine that wrote this file: measured with a copy in memory",
            "matmul_efficiency": "assumed: all of the peak",
            "memory_efficiency": "assumed: all of the bandwidth",
            "tile": "a CPU pads no matmul",
            "tiles_at_once": "as above",
            "fused_attention": plain,
            "fused_elementwise": plain,
            "gradient_bytes": "gradients are float32",
            "server_devices": unused,
            "server_gb_s": unused,
            "network_gb_s": unused,
        },
    )


def planned_step(settings: Settings, peak: float) -> tuple[dict[str, float], str]:
    """Seconds of a step on this CPU by what takes them, and the machine in words.

    Args:
        settings: of the run.
        peak: FLOP/s of float32 matmuls.

    Raises:
        UserError: the run is not one that the planner knows on a CPU.
    """
    if settings.parallel.devices > 1:
        raise UserError("the links between workers on one CPU are not known")
    bandwidth = measure_bandwidth()
    machine = host_machine(peak, bandwidth, "given")
    check_fits(settings, machine)
    parts = step_time(Workload.of(settings, machine.target), machine).parts
    kinds = {name: parts[name] for name in ("matmuls", "memory traffic", "optimizer")}
    words = f"this CPU at {peak / TERA:.3g} TFLOP/s, the peak of MFU, and {bandwidth / GB:.3g} GB/s, a copy just now"
    return kinds, words

"""SPMD or Pathways? What spanning pods costs: one program over all of them, or a controller with one program a pod.

Both compute the same inside a pod, on a batch of its own (weak scaling), and must then add up gradients that full
sharding has left in slices, ``B`` bytes a host:

- SPMD: one program, a hierarchical all-reduce: each host sends ``2 (P-1)/P B``.
- Pathways (arXiv 2203.12533): the controller runs a program a pod, has its hosts send all of their reduced gradients to
  the hosts of every other pod, ``(P-1) B``, and runs a second program that adds them up. Work is dispatched ahead: it
  costs time only where a program is shorter than its dispatch. That paper finds parity with multi-controller JAX for
  programs of 2.3 ms on 128 devices and 35 ms on 2,048, so a dispatch is taken to last 17 microseconds a device.

With overlap, gradients go in pieces, each while those before it in the network are still computed; the last piece
cannot. SPMD's compiler cuts layer by layer. A controller dispatches a transfer and an addition for every piece, so it
takes as many pieces as are best.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mindspore_palm.cost.workload import Workload
from mindspore_palm.parallel.mesh import DATA, MODEL, Mesh
from mindspore_palm.plan.machines import GB, Machine
from mindspore_palm.plan.step_time import step_time

PODS = tuple(range(1, 9))
LINKS = (1, 2, 5, 10, 20, 50, 100)
"""GB/s of a host, each way."""
DISPATCH = 35e-3 / 2048
"""Seconds a device that a controller needs to start a program."""
BACKWARD = 2 / 3
"""Share of a step in which gradients come, at least: the backward pass has two products for each of the forward one."""


@dataclass(frozen=True)
class Span:
    """Steps over several pods, in seconds."""

    pods: int
    link: float
    """GB/s of a host, each way."""
    alone: float
    """A step of one pod by itself."""
    spmd: float
    spmd_overlap: float
    pathways: float
    pathways_overlap: float

    def speedup(self, seconds: float) -> float:
        """Work a second, of one pod's."""
        return self.pods * self.alone / seconds


def span(work: Workload, machine: Machine, pods: int, link: float) -> Span:
    """Predicts the four ways to span pods.

    Args:
        work: a step of one pod.
        machine: a torus, whose hosts have the links.
        pods: how many.
        link: GB/s of a host, each way.
    """
    alone = step_time(work, machine).seconds
    once = work.gradient_sums * host_bytes(work, machine) / (link * GB)
    ring, broadcast = 2 * (pods - 1) / pods * once, (pods - 1) * once
    layers, behind = work.model.layers, BACKWARD * alone
    dispatch = dispatch_seconds(pods, work.devices)

    def waits(programs: int) -> float:  # dispatched ahead, while the step before runs
        return max(0.0, programs * dispatch - alone) if pods > 1 else 0.0

    return Span(
        pods,
        link,
        alone,
        alone + ring,
        alone + _exposed(ring, behind, layers),
        alone + broadcast + waits(2),  # gradients, and their sum with the update
        alone + min(_exposed(broadcast, behind, n) + waits(1 + 2 * n) for n in range(1, layers + 1)),
    )


def host_bytes(work: Workload, machine: Machine) -> float:
    """Bytes of gradients that a host holds in slices after the sums inside its pod, B."""
    return work.numbers_of_device * machine.gradient_bytes * machine.host_devices


def dispatch_seconds(pods: int, devices: int) -> float:
    """How long a controller takes to start a program on pods of so many devices."""
    return DISPATCH * pods * devices


def one_pod(work: Workload) -> Workload:
    """The same work for one pod, with its share of the batch."""
    mesh, pods = work.layout.mesh, work.layout.mesh.pods
    layout = replace(work.layout, mesh=Mesh(1, mesh.sizes[DATA], mesh.sizes[MODEL]))
    return replace(work, layout=layout, batch=work.batch // pods, micro_batch=work.micro_batch // pods)


def _exposed(exchange: float, behind: float, pieces: int) -> float:
    """What is not hidden of an exchange that goes in pieces behind a backward pass."""
    return max(exchange - behind * (pieces - 1) / pieces, exchange / pieces)

"""SPMD or Pathways? The cost of spanning pods: one program over all of them, or a controller with one program per pod.

Both compute the same inside a pod, on a batch of its own (weak scaling). Both must then add the gradients of all pods,
which full sharding has left sharded, ``B`` bytes per host:

- SPMD: one program, a hierarchical all-reduce: each host sends ``2 (P-1)/P B``.
- Pathways (arXiv 2203.12533): the controller runs one program per pod. Its hosts send all of their reduced gradients to
  the hosts of every other pod, ``(P-1) B``, and a second program adds them. Work is dispatched ahead, so it costs time
  only if a program is shorter than its dispatch. That paper finds parity with multi-controller JAX for programs of
  2.3 ms on 128 devices and 35 ms on 2,048, so a dispatch is assumed to take 17 microseconds per device.

With overlap, gradients are sent in chunks while the layers before them are still in their backward pass; the last chunk
cannot be hidden. SPMD's compiler sends layer by layer. A controller dispatches a transfer and an addition for each
chunk, so it uses the number of chunks that is fastest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mindspore_palm.cost.workload import Workload
from mindspore_palm.parallel.mesh import DATA, MODEL, Mesh
from mindspore_palm.plan.machines import GB, Machine
from mindspore_palm.plan.step_time import step_time

PODS = tuple(range(1, 9))
LINKS = (1, 2, 5, 10, 20, 50, 100)
"""GB/s per host, each way."""
DISPATCH = 35e-3 / 2048
"""Seconds per device that a controller needs to start a program."""
BACKWARD = 2 / 3
"""Least share of a step that is the backward pass, which has two matmuls for each one of the forward pass."""


@dataclass(frozen=True)
class Span:
    """Step time over several pods, in seconds, by the way to span them."""

    pods: int
    link: float
    """GB/s per host, each way."""
    alone: float
    """Step of one pod alone."""
    spmd: float
    spmd_overlap: float
    pathways: float
    pathways_overlap: float

    def speedup(self, seconds: float) -> float:
        """Throughput relative to one pod."""
        return self.pods * self.alone / seconds


def span(work: Workload, machine: Machine, pods: int, link: float) -> Span:
    """Predicts the four ways to span pods.

    Args:
        work: a step of one pod.
        machine: a torus, whose hosts have the links between pods.
        pods: number of pods.
        link: GB/s per host, each way.
    """
    alone = step_time(work, machine).seconds
    once = work.gradient_reductions * host_bytes(work, machine) / (link * GB)
    ring, broadcast = 2 * (pods - 1) / pods * once, (pods - 1) * once
    layers, backward = work.model.layers, BACKWARD * alone
    dispatch = dispatch_seconds(pods, work.devices)

    def waits(programs: int) -> float:  # dispatched ahead, while the previous step runs
        return max(0.0, programs * dispatch - alone) if pods > 1 else 0.0

    return Span(
        pods,
        link,
        alone,
        alone + ring,
        alone + exposed(ring, backward, layers),
        alone + broadcast + waits(2),  # gradients, and their sum with the update
        alone + min(exposed(broadcast, backward, n) + waits(1 + 2 * n) for n in range(1, layers + 1)),
    )


def host_bytes(work: Workload, machine: Machine) -> float:
    """Bytes of the gradient shards on a host after the reduction inside its pod, B."""
    return work.device_parameters * machine.gradient_bytes * machine.host_devices


def dispatch_seconds(pods: int, devices: int) -> float:
    """Time that a controller takes to start a program on pods of this many devices."""
    return DISPATCH * pods * devices


def one_pod(work: Workload) -> Workload:
    """The same step for one pod, with its share of the batch."""
    mesh, pods = work.layout.mesh, work.layout.mesh.pods
    layout = replace(work.layout, mesh=Mesh(1, mesh.sizes[DATA], mesh.sizes[MODEL]))
    return replace(work, layout=layout, batch=work.batch // pods, micro_batch=work.micro_batch // pods)


def exposed(transfer: float, backward: float, chunks: int) -> float:
    """Time of a transfer that its overlap with the backward pass, in chunks, does not hide."""
    return max(transfer - backward * (chunks - 1) / chunks, transfer / chunks)

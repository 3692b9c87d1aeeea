"""Time of collectives on a machine's links: rings that use every link along their mesh axes.

Latency is left out, as the collectives of training move megabytes.
"""

from __future__ import annotations

from collections.abc import Iterable

from mindspore_palm.parallel.axes import Layout
from mindspore_palm.parallel.mesh import DATA, MODEL, POD
from mindspore_palm.plan.machines import GB, Machine


def bandwidth(machine: Machine, layout: Layout, axis: str) -> float:
    """Bytes per second that a device sends, and receives, in a ring along a mesh axis.

    Torus: two links per dimension. The model axis takes one dimension, or two if it is longer than any and one is left
    for data. Data takes the others. Between pods, devices share their host's network. This holds for full pods; a small
    slice of a pod has fewer links.

    Servers: a group that fits stays inside one. Otherwise its ring crosses servers, at the network bandwidth of all its
    members in a server together, but not faster than inside one.
    """
    sizes = layout.mesh.sizes
    if machine.torus:
        if axis == POD:
            return machine.host_gb_s * GB / machine.host_devices
        dimensions = len(machine.torus)
        most = dimensions - (sizes[DATA] > 1)  # data needs one
        for_model = 0 if sizes[MODEL] == 1 else min(max(1, most), 1 if sizes[MODEL] <= max(machine.torus) else 2)
        return 2 * (for_model if axis == MODEL else max(1, dimensions - for_model)) * machine.link_gb_s * GB
    apart = {MODEL: 1, DATA: sizes[MODEL], POD: sizes[MODEL] * sizes[DATA]}[axis]
    together = min(sizes[axis], max(1, machine.server_devices // apart))  # members of a group in one server
    inside = machine.server_gb_s * GB
    return inside if together == sizes[axis] else min(inside, together * machine.network_gb_s * GB)


def send_bandwidth(machine: Machine) -> float:
    """Bytes per second that a device sends to the device of the next stage, inside a pod or on the network."""
    return (machine.link_gb_s or machine.network_gb_s or 0.0) * GB


def without_stages(machine: Machine, stages: int) -> Machine:
    """The machine as one stage of a pipeline inside a pod sees it: of a torus, the stages take one dimension."""
    if stages == 1 or not machine.torus or len(machine.torus) == 1:
        return machine
    return machine.model_copy(update={"torus": machine.torus[:-1]})


def all_gather(machine: Machine, layout: Layout, axes: Iterable[str], size: float) -> dict[str, float]:
    """Seconds along each axis, slowest first, to gather ``size`` bytes of which each device holds a shard.

    Axis by axis: the first ones carry only the shard that the later ones gather.
    """
    seconds = {}
    for axis in reversed(tuple(axes)):
        count = layout.mesh.sizes[axis]
        size /= count
        seconds[axis] = size * (count - 1) / bandwidth(machine, layout, axis) if count > 1 else 0.0
    return seconds


def reduce_scatter(machine: Machine, layout: Layout, axes: Iterable[str], size: float) -> dict[str, float]:
    """Seconds along each axis to leave every device its shard of the sum of ``size`` bytes per device."""
    return all_gather(machine, layout, axes, size)  # the same rings in reverse


def all_reduce(machine: Machine, layout: Layout, axes: Iterable[str], size: float) -> dict[str, float]:
    """Seconds along each axis to leave every device the sum of ``size`` bytes per device."""
    return {axis: 2 * seconds for axis, seconds in all_gather(machine, layout, axes, size).items()}

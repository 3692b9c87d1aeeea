"""How long exchanges take on a machine's links: rings that use every link of the axes they run along.

Latency is left out: exchanges of training are megabytes.
"""

from __future__ import annotations

from collections.abc import Iterable

from mindspore_palm.parallel.axes import Layout
from mindspore_palm.parallel.mesh import DATA, MODEL, POD
from mindspore_palm.plan.machines import GB, Machine


def bandwidth(machine: Machine, layout: Layout, axis: str) -> float:
    """Bytes a second that a device sends, and receives, in a ring along a mesh axis.

    A torus has two links a dimension. The model axis takes one dimension, or two if it is longer than any and one is
    left for data; data takes the others; between pods, devices share their host's network. That is of whole pods: a
    small slice of one has fewer links than this says. In servers, a group stays inside if it fits. If not, its ring
    crosses from server to server, on the network shares of all its members in a server, but not faster than inside.
    """
    sizes = layout.mesh.sizes
    if machine.torus:
        if axis == POD:
            return machine.host_gb_s * GB / machine.host_devices
        dimensions = len(machine.torus)
        most = dimensions - (sizes[DATA] > 1)  # data needs one of its own
        for_model = 0 if sizes[MODEL] == 1 else min(max(1, most), 1 if sizes[MODEL] <= max(machine.torus) else 2)
        return 2 * (for_model if axis == MODEL else max(1, dimensions - for_model)) * machine.link_gb_s * GB
    apart = {MODEL: 1, DATA: sizes[MODEL], POD: sizes[MODEL] * sizes[DATA]}[axis]
    together = min(sizes[axis], max(1, machine.server_devices // apart))  # members of a group in one server
    inside = machine.server_gb_s * GB
    return inside if together == sizes[axis] else min(inside, together * machine.network_gb_s * GB)


def all_gather(machine: Machine, layout: Layout, axes: Iterable[str], size: float) -> dict[str, float]:
    """Seconds along each of some axes, slowest first, until a device has ``size`` bytes, of which each brought a part.

    Axis by axis: what goes along one is the part of it that those behind it have still to gather.
    """
    seconds = {}
    for axis in reversed(tuple(axes)):
        count = layout.mesh.sizes[axis]
        size /= count
        seconds[axis] = size * (count - 1) / bandwidth(machine, layout, axis) if count > 1 else 0.0
    return seconds


def reduce_scatter(machine: Machine, layout: Layout, axes: Iterable[str], size: float) -> dict[str, float]:
    """Seconds along each axis until a device has its part of the sum of what all brought, ``size`` bytes each."""
    return all_gather(machine, layout, axes, size)  # the same rings, backwards


def all_reduce(machine: Machine, layout: Layout, axes: Iterable[str], size: float) -> dict[str, float]:
    """Seconds along each axis until a device has the sum of what all brought, ``size`` bytes each."""
    return {axis: 2 * seconds for axis, seconds in all_gather(machine, layout, axes, size).items()}

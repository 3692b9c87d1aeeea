"""The one owner of MindSpore's global state: device and mode."""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms

from mindspore_palm.errors import UserError

KINDS = ("Ascend", "GPU", "CPU")


@dataclass(frozen=True)
class Device:
    """What a run computes on."""

    name: str
    reason: str
    """Why this one was taken."""
    dtype: str
    dtype_reason: str
    """Why numbers have this type."""


def use_graphs() -> None:
    """Has networks compiled when they are called, on whatever device.

    MindSpore starts in eager mode, which in 2.10 fails beside NumPy 2, and in which no sharding strategy counts.
    """
    ms.set_context(mode=ms.GRAPH_MODE)


def open_device(wanted: str = "auto") -> Device:
    """Chooses the device and sets graph mode. Nobody else touches MindSpore's context.

    Raises:
        UserError: the wanted device is not there.
    """
    use_graphs()
    there = [kind for kind in KINDS if _available(kind)]
    if wanted != "auto" and wanted not in there:
        raise UserError(
            f"train.device = {wanted}: MindSpore {ms.__version__} finds no {wanted} on this machine (it finds "
            f"{', '.join(there)}); set train.device=auto"
        )
    kind = there[0] if wanted == "auto" else wanted
    ms.set_device(kind)
    reason = "as set" if wanted != "auto" else f"the fastest kind that MindSpore {ms.__version__} finds here"
    dtype_reason = "weights, activations and loss: MindSpore's CPU has no bfloat16 matrix product"
    return Device(kind, reason, "float32", dtype_reason)


def _available(kind: str) -> bool:
    try:
        return kind == "CPU" or bool(ms.hal.is_available(kind))
    except (ValueError, RuntimeError):  # a wheel that does not know the kind
        return False

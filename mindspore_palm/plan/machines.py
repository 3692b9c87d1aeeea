"""Machines to plan for: what a device computes, holds and sends, in small YAML files with the source of each figure."""

from __future__ import annotations

import difflib
from math import ceil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from mindspore_palm.config import Count, Section
from mindspore_palm.errors import UserError
from mindspore_palm.settings import read_yaml

HOME = Path(__file__).parent / "machines"
GB, GIB, TERA = 1e9, 2**30, 1e12
Figure = Annotated[float, Field(gt=1e-6, lt=1e12)]


class Machine(Section):
    """A device and its links. Devices are wired as a torus, or in servers behind a network."""

    title: str
    """What it is."""
    target: Literal["GPU", "Ascend"] = "GPU"
    """Whose rules for groups MindSpore applies; a TPU, for which it does not compile, is planned as GPU."""
    peak_tflops: Figure
    """Of matrix products in a 16-bit type, TFLOP/s."""
    memory_gib: Figure
    """GiB of a device."""
    memory_gb_s: Figure
    """GB/s between a device and its memory."""
    matmul_efficiency: Annotated[float, Field(gt=0, le=1)]
    """What a large product reaches of the peak."""
    memory_efficiency: Annotated[float, Field(gt=0, le=1)]
    """What streaming reaches of the memory's peak."""
    tile: Annotated[list[Count], Field(min_length=3, max_length=3)]
    """Rows, columns and depth that a product is padded to."""
    tiles_at_once: Count
    """Tiles of rows and columns in one wave."""
    fused_attention: bool
    """Whether attention keeps its scores out of the device's memory."""
    fused_elementwise: bool
    """Whether the compiler computes elementwise ops again in the backward pass instead of keeping their inputs."""
    gradient_bytes: Count
    """Bytes of a number of a gradient on its way."""
    torus: Annotated[list[Count], Field(min_length=1)] | None = None
    """Devices along each dimension of a pod."""
    link_gb_s: Figure | None = None
    """Of one link of the torus, each way; a dimension has two at every device."""
    host_devices: Count | None = None
    """Torus: devices that share a host's network between pods."""
    host_gb_s: Figure | None = None
    """Torus: GB/s of a host between pods, each way."""
    server_devices: Count | None = None
    """Devices of a server."""
    server_gb_s: Figure | None = None
    """GB/s of a device inside its server, each way."""
    network_gb_s: Figure | None = None
    """GB/s of a device's share of the network between servers, each way."""
    sources: dict[str, str]
    """Where each figure is from."""

    @model_validator(mode="after")
    def _is_complete(self) -> Machine:
        given = {name for name, value in self if value is not None} - {"title", "target", "sources"}
        wiring = {"torus", "link_gb_s", "host_devices", "host_gb_s"}, {"server_devices", "server_gb_s", "network_gb_s"}
        if not any(given & set.union(*wiring) == kind for kind in wiring):
            raise ValueError(f"give either {', '.join(sorted(wiring[0]))} or {', '.join(sorted(wiring[1]))}")
        if given != set(self.sources):
            odd = sorted(given ^ set(self.sources))[0]
            raise ValueError(f"sources must name every figure once; {odd} is in one of the two only")
        return self

    @property
    def peak(self) -> float:
        """FLOP/s of a device."""
        return self.peak_tflops * TERA

    @property
    def memory(self) -> float:
        """Bytes of a device."""
        return self.memory_gib * GIB

    def product_seconds(self, m: int, k: int, n: int, count: int = 1) -> float:
        """Time of products [m, k] x [k, n] of 16-bit numbers: by arithmetic or by memory, the longer one.

        Arithmetic is of whole tiles in whole waves, ``count`` products together; of fewer tiles than a wave has, each
        is cut along its depth. Memory is of every operand and result once.
        """
        rows, columns, depth = self.tile
        waves = count * ceil(m / rows) * ceil(n / columns) / self.tiles_at_once
        waves = ceil(waves) if waves > 1 else waves
        work = 2 * waves * self.tiles_at_once * rows * columns * ceil(k / depth) * depth
        moved = self.stream_seconds(2 * count * (m * k + k * n + m * n))
        return max(work / (self.peak * self.matmul_efficiency), moved)

    def stream_seconds(self, size: float) -> float:
        """Time to read or write bytes of a device's memory."""
        return size / (self.memory_gb_s * GB * self.memory_efficiency)


def machine_names() -> list[str]:
    """The machines that come with the project."""
    return sorted(file.stem for file in HOME.glob("*.yaml"))


def load_machine(name: str) -> Machine:
    """A machine by its name, or from a YAML file of the user's own.

    Raises:
        UserError: there is none of that name, or the file does not describe one; says what is wrong.
    """
    names = machine_names()
    file = Path(name) if name.endswith((".yaml", ".yml")) else HOME / f"{name}.yaml"
    if not file.is_file():
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "or give a .yaml file of your own"
        what = f"there is no file {file}" if file.suffix and file.parent != HOME else f"no machine is called {name!r}"
        raise UserError(f"{what}; the machines are {', '.join(names)}: {hint}")
    try:
        values = read_yaml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: a machine is a list of 'figure: value' lines; see {HOME / 'a100.yaml'}")
    try:
        return Machine.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
        raise UserError(f"{file}: {where + ': ' if where else ''}{message}") from None

"""Machines to plan for: compute, memory and links of a device, in small YAML files with the source of each number."""

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
Number = Annotated[float, Field(gt=1e-6, lt=1e12)]


class Machine(Section):
    """A device and its links. Devices form a torus, or servers on a network."""

    title: str
    """Device and topology, in words."""
    target: Literal["CPU", "GPU", "Ascend"] = "GPU"
    """Target whose rules for process groups apply. MindSpore does not compile for TPUs, so they are planned as GPU."""
    peak_tflops: Number
    """Peak of 16-bit matmuls, TFLOP/s; on a CPU, of float32 matmuls."""
    memory_gib: Number
    """Memory per device, GiB."""
    memory_gb_s: Number
    """Peak bandwidth of a device's memory, GB/s."""
    matmul_efficiency: Annotated[float, Field(gt=0, le=1)]
    """Share of the peak that a large matmul reaches."""
    memory_efficiency: Annotated[float, Field(gt=0, le=1)]
    """Share of the memory's peak bandwidth that streaming reaches."""
    tile: Annotated[list[Count], Field(min_length=3, max_length=3)]
    """Rows, columns and depth to which a matmul is padded."""
    tiles_at_once: Count
    """Tiles of rows and columns per wave."""
    fused_attention: bool
    """Whether attention keeps its scores out of device memory."""
    fused_elementwise: bool
    """Whether the compiler recomputes elementwise ops in the backward pass instead of saving their inputs."""
    gradient_bytes: Count
    """Bytes per element of a gradient in a collective."""
    torus: Annotated[list[Count], Field(min_length=1)] | None = None
    """Torus: devices along each dimension of a pod."""
    link_gb_s: Number | None = None
    """Torus: GB/s of one link, each way; every device has two per dimension."""
    host_devices: Count | None = None
    """Torus: devices per host, which share its network between pods."""
    host_gb_s: Number | None = None
    """Torus: GB/s per host between pods, each way."""
    server_devices: Count | None = None
    """Servers: devices per server."""
    server_gb_s: Number | None = None
    """Servers: GB/s per device inside a server, each way."""
    network_gb_s: Number | None = None
    """Servers: GB/s per device on the network between servers, each way."""
    sources: dict[str, str]
    """Source of each number."""

    @model_validator(mode="after")
    def _is_complete(self) -> Machine:
        given = {name for name, value in self if value is not None} - {"title", "target", "sources"}
        wiring: tuple[set[str], ...]
        wiring = {"torus", "link_gb_s", "host_devices", "host_gb_s"}, {"server_devices", "server_gb_s", "network_gb_s"}
        if not any(given & set.union(*wiring) == fields for fields in wiring):
            raise ValueError(f"give either {', '.join(sorted(wiring[0]))} or {', '.join(sorted(wiring[1]))}")
        if given != set(self.sources):
            odd = sorted(given ^ set(self.sources))[0]
            raise ValueError(f"sources must name every number once; {odd} is in one of the two only")
        return self

    @property
    def peak(self) -> float:
        """Peak FLOP/s per device."""
        return self.peak_tflops * TERA

    @property
    def memory(self) -> float:
        """Bytes of memory per device."""
        return self.memory_gib * GIB

    def matmul_seconds(self, m: int, k: int, n: int, count: int = 1, item: int = 2) -> float:
        """Time of ``count`` matmuls [m, k] x [k, n] of numbers of ``item`` bytes: the longer of arithmetic and memory.

        Arithmetic: full tiles in full waves, over all ``count`` matmuls together. If there are fewer tiles than a wave
        holds, each is split along its depth. Memory: every operand and result once.
        """
        rows, columns, depth = self.tile
        waves = count * ceil(m / rows) * ceil(n / columns) / self.tiles_at_once
        waves = ceil(waves) if waves > 1 else waves
        work = 2 * waves * self.tiles_at_once * rows * columns * ceil(k / depth) * depth
        moved = self.stream_seconds(item * count * (m * k + k * n + m * n))
        return max(work / (self.peak * self.matmul_efficiency), moved)

    def stream_seconds(self, size: float) -> float:
        """Time to read or write bytes of device memory."""
        return size / (self.memory_gb_s * GB * self.memory_efficiency)


def machine_names() -> list[str]:
    """Names of the machines that come with the project."""
    return sorted(file.stem for file in HOME.glob("*.yaml"))


def load_machine(name: str) -> Machine:
    """Loads a machine by name, or from a user's YAML file.

    Raises:
        UserError: no machine has that name, or the file does not describe one; names what is wrong.
    """
    names = machine_names()
    file = Path(name) if name.endswith((".yaml", ".yml")) else HOME / f"{name}.yaml"
    if not file.is_file():
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "or give a .yaml file of your own"
        is_file = file.suffix and file.parent != HOME
        problem = f"there is no file {file}" if is_file else f"no machine is called {name!r}"
        raise UserError(f"{problem}; the machines are {', '.join(names)}: {hint}")
    try:
        values = read_yaml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: a machine is a list of 'name: value' lines; see {HOME / 'a100.yaml'}")
    try:
        return Machine.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
        raise UserError(f"{file}: {where + ': ' if where else ''}{message}") from None

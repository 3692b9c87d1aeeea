"""The mesh: stages x pods x data x model, model fastest, as PaLM numbers its chips (section 4 of the paper).

Stages are the slowest axis, because MindSpore numbers the ranks of a pipeline so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

STAGE, POD, DATA, MODEL = "stage", "pod", "data", "model"


@dataclass(frozen=True)
class Mesh:
    """Number of devices along each axis. A rank has coordinates (stage, pod, data, model); model varies fastest."""

    pods: int = 1
    """Pods; only gradients are reduced between them."""
    data: int = 1
    """Data parallelism inside a pod: shards of the batch; weights are fully sharded over the same devices."""
    model: int = 1
    """Model parallelism: shards of heads, feed-forward columns and vocabulary."""
    stages: int = 1
    """Pipeline parallelism: runs of layers, each on devices of its own."""

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Devices along each axis, slowest axis first."""
        return {STAGE: self.stages, POD: self.pods, DATA: self.data, MODEL: self.model}

    @cached_property
    def devices(self) -> int:
        """The number of devices."""
        return prod(self.sizes.values())

    @property
    def stage_devices(self) -> int:
        """The number of devices of one stage."""
        return self.devices // self.stages

    def stage(self, rank: int) -> int:
        """The stage of a rank."""
        return self.coordinates(rank)[STAGE]

    def coordinates(self, rank: int) -> dict[str, int]:
        """Coordinates of a rank by axis.

        Raises:
            ValueError: there is no such rank.
        """
        if not 0 <= rank < self.devices:
            raise ValueError(f"rank {rank} is not on a mesh of {self.devices} devices ({self})")
        coordinates = {}
        for axis, size in reversed(list(self.sizes.items())):
            rank, coordinates[axis] = divmod(rank, size)
        return coordinates

    def rank(self, coordinates: Mapping[str, int]) -> int:
        """The rank with these coordinates."""
        number = 0
        for axis, size in self.sizes.items():
            number = number * size + coordinates[axis]
        return number

    def group(self, rank: int, axes: Iterable[str]) -> list[int]:
        """The ranks that differ from ``rank`` along ``axes`` only, including itself, in ascending order."""
        free, own = set(axes), self.coordinates(rank)
        ranges = [range(size) if axis in free else (own[axis],) for axis, size in self.sizes.items()]
        return [self.rank(dict(zip(self.sizes, point, strict=True))) for point in product(*ranges)]

    def index(self, rank: int, axes: Iterable[str]) -> int:
        """The index of a rank's shard of something that is sharded over ``axes``; the first of them varies slowest."""
        own, number = self.coordinates(rank), 0
        for axis in axes:
            number = number * self.sizes[axis] + own[axis]
        return number

    def __str__(self) -> str:
        stages = f"{self.stages} stages x " if self.stages > 1 else ""
        return f"{stages}{self.pods} pods x {self.data} data x {self.model} model"

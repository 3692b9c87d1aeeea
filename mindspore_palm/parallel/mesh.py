"""The mesh: pods x data x model, model fastest, as PaLM numbers its chips (section 4 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

POD, DATA, MODEL = "pod", "data", "model"


@dataclass(frozen=True)
class Mesh:
    """How many devices lie along each axis. Rank r stands at (pod, data, model), the last counting fastest."""

    pods: int = 1
    """Pods, between which only gradients travel."""
    data: int = 1
    """Parts of a batch in one pod; weights are fully sharded over them."""
    model: int = 1
    """Parts of every product: heads, feed-forward columns and vocabulary."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Devices along each axis, slowest axis first."""
        return {POD: self.pods, DATA: self.data, MODEL: self.model}

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return prod(self.sizes.values())

    def coordinates(self, rank: int) -> dict[str, int]:
        """Where a rank stands on each axis.

        Raises:
            ValueError: there is no such rank.
        """
        if not 0 <= rank < self.devices:
            raise ValueError(f"rank {rank} is not on a mesh of {self.devices} devices ({self})")
        place = {}
        for axis, size in reversed(self.sizes.items()):
            rank, place[axis] = divmod(rank, size)
        return place

    def rank(self, place: Mapping[str, int]) -> int:
        """The rank that stands at the coordinates."""
        number = 0
        for axis, size in self.sizes.items():
            number = number * size + place[axis]
        return number

    def group(self, rank: int, axes: Iterable[str]) -> list[int]:
        """The ranks that differ from ``rank`` along ``axes`` alone, itself among them, in order."""
        free, here = set(axes), self.coordinates(rank)
        ranges = [range(size) if axis in free else (here[axis],) for axis, size in self.sizes.items()]
        return [self.rank(dict(zip(self.sizes, place, strict=True))) for place in product(*ranges)]

    def index(self, rank: int, axes: Iterable[str]) -> int:
        """Which of the pieces a rank holds when something is cut over ``axes``, the first of them slowest."""
        here, number = self.coordinates(rank), 0
        for axis in axes:
            number = number * self.sizes[axis] + here[axis]
        return number

    def __str__(self) -> str:
        return f"{self.pods} pods x {self.data} data x {self.model} model"

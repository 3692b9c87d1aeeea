"""Changes of settings that an error message may advise: applied, to try them, and as a user writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice, product
from math import prod
from typing import Any

from pydantic import ValidationError

from mindspore_palm.config import Settings
from mindspore_palm.parallel.mesh import Mesh

Change = Mapping[str, Any]
"""Values by their ``section.key``."""

NEAR = 8  # sizes of an axis that are tried on each side of the current one
MAX_MESHES = 2000  # that are tried


def apply(settings: Settings, change: Change) -> Settings | None:
    """The settings with a change; None if they contradict each other with it."""
    values = settings.model_dump()
    values["model"]["preset"] = ""  # the sizes themselves are all set
    for name, value in change.items():
        section, key = name.split(".")
        values[section][key] = value
    try:
        return Settings.model_validate(values)
    except ValidationError:
        return None


def in_words(change: Change) -> str:
    """A change as overrides: ``parallel.data=2 and train.batch_size=[[0,8],[5,16]]``."""
    return " and ".join(f"{name}={_shown(value)}" for name, value in change.items())


def meshes(mesh: Mesh) -> Iterator[Change]:
    """Other meshes: first those that change one axis, nearest number of devices first; the last one is one device."""
    names = ("parallel.stages", "parallel.pods", "parallel.data", "parallel.model")
    sizes = list(mesh.sizes.values())
    tried = [
        sorted(n for n in {1, *range(max(1, size - NEAR), size + NEAR + 1), *(2**n for n in range(13))} if n < 2 * size)
        for size in sizes
    ]

    def distance(other: tuple[int, ...]) -> tuple[int, int, int]:
        changed = sum(a != b for a, b in zip(other, sizes, strict=True))
        devices = prod(other)
        return changed, abs(devices - mesh.devices), devices

    candidates = sorted(product(*tried), key=distance)
    for other in [*islice(candidates, 1, MAX_MESHES), (1,) * len(names)]:
        yield {name: new for name, new, old in zip(names, other, sizes, strict=True) if new != old}


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).replace(" ", "")

"""Changes of settings that a refusal may advise: applied, so that they can be tried, and as a user writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import Any

from pydantic import ValidationError

from mindspore_palm.config import Settings
from mindspore_palm.parallel.mesh import Mesh

Change = Mapping[str, Any]
"""Values by ``section.key``."""

NEAR = 8  # sizes of an axis that are tried on each side of the one that is set
MOST = 2000  # meshes that are tried at most


def apply(settings: Settings, change: Change) -> Settings | None:
    """The settings with a change; None where they contradict each other then."""
    values = settings.model_dump()
    values["model"]["preset"] = ""  # the sizes themselves are all there
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
    """Other meshes: those that change one axis first, then the nearest in number of devices; one device is the last."""
    names = ("parallel.pods", "parallel.data", "parallel.model")
    sizes = list(mesh.sizes.values())
    tried = [
        sorted(n for n in {1, *range(max(1, size - NEAR), size + NEAR + 1), *(2**n for n in range(13))} if n < 2 * size)
        for size in sizes
    ]

    def distance(other: tuple[int, ...]) -> tuple[int, int, int]:
        changed = sum(a != b for a, b in zip(other, sizes, strict=True))
        devices = other[0] * other[1] * other[2]
        return changed, abs(devices - mesh.devices), devices

    found = sorted(product(*tried), key=distance)
    for other in [*islice(found, 1, MOST), (1, 1, 1)]:
        yield {name: new for name, new, old in zip(names, other, sizes, strict=True) if new != old}


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).replace(" ", "")

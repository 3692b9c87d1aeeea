"""The house: which rooms the package has, and that imports between them only go down."""

from __future__ import annotations

import pytest
from unit.imports import PACKAGE, SHIPPED, imported_by, module_of

FLOORS = (
    (
        "devices",
        "errors",
        "file_names",
        "invocation",
        "machine",
        "modules",
        "presets",
        "random",
        "shipped",
        "tables",
        "version",
    ),
    ("console", "fields", "files", "native", "options", "preflight"),
    ("cpu", "cuda", "figures", "graph_cache", "palm_config"),
    ("parallel_config",),
    ("config",),
    ("data", "parallel"),
    ("effects",),
    ("settings",),
    ("launch", "model", "optim"),
    ("checkpoint", "cost"),
    ("train.log",),
    ("convert", "generate", "plan", "train"),
    ("dry_run", "evaluate", "serve", "zoo"),
    ("study",),
    ("cli",),
    ("__main__", "mindspore_palm", "mindspore_hub_conf", "run"),  # what users import and call
)
"""From the ground up. A module imports its own room and the floors below it, nothing else."""

WITHOUT_TRAIN = ("convert", "evaluate", "generate", "plan", "serve")
"""Rooms that open what a run has written, or ask what it costs, and need nothing that trains."""

FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def room_of(module: str) -> str:
    """The room of a module: the longest name of the floors that its own begins with."""
    if not module.startswith(f"{PACKAGE}."):
        return module.partition(".")[0]
    name = module.removeprefix(f"{PACKAGE}.")
    parts = name.split(".")
    return next((room for n in (2, 1) if (room := ".".join(parts[:n])) in FLOOR), parts[0])


def arrows_up(imports: dict[str, set[str]]) -> list[str]:
    """Imports that do not go down, each as "importer -> imported"."""
    found = []
    for module, targets in sorted(imports.items()):
        for target in sorted(targets):
            above, below = room_of(module), room_of(target)
            if above == below or below == PACKAGE:
                continue
            if FLOOR[below] >= FLOOR[above] or (below.startswith("train") and above in WITHOUT_TRAIN):
                found.append(f"{module} -> {target}")
    return found


def imports_of_the_house() -> dict[str, set[str]]:
    own = {name for file in SHIPPED for name in [module_of(file)]}
    return {module_of(file): {name for name in imported_by(file) if is_own(name, own)} for file in SHIPPED}


def is_own(name: str, own: set[str]) -> bool:
    return name in own and name != PACKAGE


def test_imports_only_go_down():
    assert arrows_up(imports_of_the_house()) == []


def test_every_module_has_its_room():
    assert {room_of(module_of(file)) for file in SHIPPED} == set(FLOOR)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("mindspore_palm.model.block", "mindspore_palm.train.step"),
        ("mindspore_palm.data.corpus", "mindspore_palm.parallel.mesh"),
        ("mindspore_palm.train.log.banner", "mindspore_palm.train.finetune"),
        ("mindspore_palm.evaluate.text", "mindspore_palm.train.evaluate"),
        ("mindspore_palm.config", "mindspore_palm.settings"),
    ],
)
def test_an_arrow_that_goes_up_is_named(importer, imported):
    assert arrows_up({importer: {imported}}) == [f"{importer} -> {imported}"]


def test_arrows_that_go_down_or_stay_in_a_room_are_none():
    down = {
        "mindspore_palm.train.loop": {"mindspore_palm.model.palm", "mindspore_palm.train.step", "mindspore_palm.files"}
    }
    assert arrows_up(down) == []

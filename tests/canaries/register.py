"""The register of workarounds, docs/design/mindspore-2.10.md, as data; and how a canary says that one is not needed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mindspore_palm"
REGISTER = ROOT / "docs" / "design" / "mindspore-2.10.md"
ID = re.compile(r"\bMS-\d\d\b")
SITE = re.compile(r"`([\w/]+\.\w+)`: ((?:`[^`]+`(?:, )?)+)")


@dataclass(frozen=True)
class Row:
    """One workaround."""

    id: str
    symptom: str
    remedy: str
    where: str
    """Sites: a file of the package and what in it, `` `model/norm.py`: `RMSNorm`; ... ``."""
    canary: str
    """The name of a test in backquotes; or "none:" and why."""

    @property
    def sites(self) -> dict[str, list[str]]:
        """File of the package -> names that stand in it."""
        return {file: re.findall(r"`([^`]+)`", names) for file, names in SITE.findall(self.where)}

    @property
    def tests(self) -> list[str]:
        """Names of the canary tests."""
        return re.findall(r"`(test_\w+)`", self.canary)


def rows() -> dict[str, Row]:
    """All rows of the tables, by id.

    Raises:
        AssertionError: a row has not five columns, or an id stands in two rows.
    """
    found: dict[str, Row] = {}
    for line in REGISTER.read_text(encoding="utf-8").splitlines():
        if not line.startswith("| MS-"):
            continue
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        assert len(cells) == 5, line
        assert cells[0] not in found, f"{cells[0]} stands in two rows"
        found[cells[0]] = Row(*cells)
    return found


def still(id: str, shown: bool, seen: object = "") -> None:
    """Passes while MindSpore shows a fault.

    Args:
        id: of the workaround.
        shown: whether the fault was seen.
        seen: what was seen, for the message.

    Raises:
        AssertionError: MindSpore has fixed it; names what to remove.
    """
    if not shown:
        where = rows()[id].where
        raise AssertionError(f"{id}: MindSpore has fixed this; remove the workaround in {where} (seen: {seen})")

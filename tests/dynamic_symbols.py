"""Names of the dynamic symbols of libraries, for tests that build stand-ins for what a library is linked to."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path


def symbols(files: Iterable[Path], which: str) -> set[str]:
    """Names without versions; ``which`` is an option of nm, --undefined-only or --defined-only."""
    command = ["nm", "-D", which]
    listings = (subprocess.run([*command, file], capture_output=True, text=True, check=True).stdout for file in files)
    lines = (line.split() for listing in listings for line in listing.splitlines())
    return {words[-1].partition("@")[0] for words in lines if words}

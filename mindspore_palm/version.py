"""Version of this package, and the commit of its checkout."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

PACKAGE = "mindspore_palm"
ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 10.0  # seconds for git, which may wait for a network disk


def version(root: Path = ROOT) -> str:
    """Version of the package that runs, such as 0.1.0; empty if neither a checkout nor an installation states one."""
    with suppress(OSError):  # a checkout goes first: another version may be installed beside it
        if found := re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(encoding="utf-8"), re.M):
            return found[1]
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(PACKAGE)
    return ""


def commit(root: Path = ROOT) -> str:
    """Commit of the checkout that runs, with "+changes" if files differ from it; empty if it is unknown."""
    if not (root / ".git").exists():  # installed, perhaps into a folder of somebody else's repository
        return ""
    try:
        head, changes = (_git(root, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno")))
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{head}+changes" if changes else head


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=TIMEOUT, check=True)  # noqa: S603
    return done.stdout.strip()

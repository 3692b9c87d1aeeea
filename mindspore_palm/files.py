"""Paths as people write them: with ~, through links, and refused in a sentence where they lead nowhere."""

from __future__ import annotations

import os
from pathlib import Path

from mindspore_palm.errors import UserError


def expanded(path: str | Path, origin: str = "") -> Path:
    """A path whose ~ is the home of its user; a shell does that in some places and not in others.

    Args:
        path: as it was given.
        origin: the setting or option that gave it, for messages.

    Raises:
        UserError: there is no such home.
    """
    text = os.fspath(path)
    if not text.startswith("~") or os.path.lexists(text):  # a file may be called like that
        return Path(path)
    found = os.path.expanduser(text)
    if found == text:
        name = Path(text).parts[0]
        raise UserError(
            f"{f'{origin} = ' if origin else ''}{text}: {name} names a home that this machine does not know; write the "
            "path in full"
        )
    return Path(found)


def check_links(path: Path, origin: str) -> None:
    """Sees that no part of a path, which is to be made or written to, is a link that leads nowhere.

    Raises:
        UserError: names the link and where it leads.
    """
    if path.parts[:1] == ("~",):
        raise UserError(f"{origin} = {path}: a ~ alone is no folder of a run; write the path in full")
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            raise UserError(
                f"{origin} = {path}: {part} is a link to {os.readlink(part)}, and nothing is there; mount or make what "
                "it leads to, or remove the link"
            )

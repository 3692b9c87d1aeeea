"""Deletes files that a run wrote, by name, and never a user's own files beside them."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path


def delete_own_files(folder: Path, names: re.Pattern[str]) -> bool:
    """Deletes the files and links of a folder with matching names, and then the folder if it is empty.

    A link to a folder is not followed.

    Returns:
        Whether the folder is gone.

    Raises:
        OSError: a file could not be deleted.
    """
    if folder.is_symlink() or not folder.is_dir():
        return not folder.exists()
    for path in folder.iterdir():
        if names.fullmatch(path.name) and (path.is_symlink() or path.is_file()):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # users' own files are left
        folder.rmdir()
    return not folder.exists()


def move_into(source: Path, target: Path) -> None:
    """Moves the content of a folder to another one, under new names where names are taken, and deletes the folder.

    Raises:
        OSError: a file could not be moved.
    """
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        shutil.move(path, free_name(target / path.name))
    source.rmdir()


def free_name(path: Path) -> Path:
    """An unused path: this one, or with a number appended."""
    free, number = path, 2
    while os.path.lexists(free):
        free, number = path.with_name(f"{path.name}.{number}"), number + 1
    return free

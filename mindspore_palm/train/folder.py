"""The folder of a run: checked before hours of work, begun when work begins."""

from __future__ import annotations

import shutil
from pathlib import Path

from mindspore_palm.config import Settings
from mindspore_palm.data.atomic import write_atomically
from mindspore_palm.errors import UserError
from mindspore_palm.settings import settings_to_yaml

RUN = ("metrics.csv", "loss.png", "tensorboard", "final", "interrupted")  # what a run leaves, config.yaml apart


def check_run_folder(settings: Settings, overwrite: bool) -> Path:
    """Makes the folder of a run and sees that it can be written, before hours of work; deletes nothing.

    Raises:
        UserError: the folder holds a run already.
        OSError: it cannot be written.
    """
    folder = Path(settings.train.output)
    if not overwrite and any((folder / name).exists() for name in RUN):
        raise UserError(
            f"{folder} holds a run already; set train.output to another folder, or delete that run by --overwrite"
        )
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / "writable"
    with write_atomically(probe) as file:
        file.write(b"this run can write here\n")
    probe.unlink()
    return folder


def start_run_folder(folder: Path, settings: Settings) -> None:
    """Deletes an earlier run, now that this one is sure to begin, and writes the resolved settings.

    Raises:
        OSError: a file could not be deleted or written.
    """
    for path in (folder / name for name in RUN):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with write_atomically(folder / "config.yaml") as file:
        file.write(settings_to_yaml(settings).encode())

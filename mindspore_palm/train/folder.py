"""The folder of a run: whether it is new or goes on, checked before hours of work; nothing in it is lost by mistake."""

from __future__ import annotations

import enum
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mindspore_palm.config import Settings
from mindspore_palm.data.atomic import try_lock, write_atomically
from mindspore_palm.errors import UserError
from mindspore_palm.settings import load_settings, settings_to_yaml
from mindspore_palm.train.adapter import ADAPTER
from mindspore_palm.train.checkpoint import Checkpoint, DamagedCheckpoint, folder_name, steps_in
from mindspore_palm.train.finetune import check_text
from mindspore_palm.train.progress import REWINDS
from mindspore_palm.train.resume import NAMES, Start, check_same, differences

CHECKPOINTS = "checkpoints"
BEGUN = ("metrics.csv", "loss.png", "tensorboard", "tensorboard.tmp", CHECKPOINTS, REWINDS, ADAPTER)
MODELS = ("final", "interrupted")  # what is hours of work by itself; earlier versions left the second one
PATIENCE = 20.0  # seconds for the processes of a command that was killed to be gone


class Found(enum.IntEnum):
    """What is in the folder of a run."""

    NOTHING = 0
    BEGUN = 1
    """A run that ended before its first checkpoint."""
    CHECKPOINTS = 2
    FINISHED = 3


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Makes the folder of a run, sees that it can be written, and keeps other processes from training in it.

    Raises:
        UserError: another process does.
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "ab") as file:
        end = time.monotonic() + PATIENCE
        while not try_lock(file):
            if time.monotonic() > end:
                raise UserError(f"another process is training in {folder}; set train.output to another folder")
            time.sleep(0.2)
        probe = folder / "writable"
        with write_atomically(probe) as content:
            content.write(b"this run can write here\n")
        probe.unlink()
        yield  # closing the file frees the lock; so does a kill


def check_run_folder(settings: Settings, start: Start) -> Found:
    """What a run finds in its folder; changes nothing there.

    Raises:
        UserError: the folder holds a run that this one is no continuation of.
    """
    folder, steps, before = Path(settings.train.output), settings.train.steps, settings
    if start.overwrite:
        return Found.NOTHING
    there = steps_in(folder / CHECKPOINTS)
    if not there:
        if start.rewind_to is not None:
            raise UserError(f"--rewind-to {start.rewind_to}: there is no checkpoint in {folder / CHECKPOINTS}")
        if any((folder / name).exists() for name in MODELS):
            raise UserError(
                f"{folder} holds a run already, which left no checkpoint to go on from; set train.output to another "
                "folder, or delete that run by --overwrite"
            )
        if not any((folder / name).exists() for name in BEGUN):
            return Found.NOTHING
        if (folder / "config.yaml").exists():
            check_same(load_settings(folder / "config.yaml")[0], settings, start, folder)
        return Found.BEGUN
    for step in there:
        try:
            config = Checkpoint(folder / CHECKPOINTS / folder_name(step)).folder / "config.yaml"
        except DamagedCheckpoint:
            continue  # said when the run goes on from the one before
        before = load_settings(config)[0]
        check_same(before, settings, start, folder)
        break
    if start.asked:
        return Found.CHECKPOINTS
    if there[0] > steps:
        raise UserError(
            f"{folder} has taken {there[0]:,} steps, and train.steps is {steps:,}; set train.steps higher to go on, "
            "or go back by --rewind-to"
        )
    if not there[0] == steps == _step_of_model(folder / "final"):
        return Found.CHECKPOINTS
    if set(differences(before, settings)) & set(NAMES):  # else a run on another text would be said to be finished
        check_text(settings, start, Checkpoint(folder / CHECKPOINTS / folder_name(steps)).state)
    return Found.FINISHED


def finished(settings: Settings) -> str:
    """What is said where there is nothing left to do."""
    folder, steps = Path(settings.train.output), settings.train.steps
    return (
        f"the run in {folder} is finished: {steps:,} steps, and its model is in {folder / 'final'}; set train.steps "
        "higher to go on, or begin anew in another train.output, or by --overwrite"
    )


def start_run_folder(folder: Path, settings: Settings, found: Found) -> None:
    """Deletes an earlier run that is not gone on with, now that this one is sure to begin, and writes the settings.

    Raises:
        OSError: a file could not be deleted or written.
    """
    if found in (Found.NOTHING, Found.BEGUN):
        kept = (REWINDS,) if found is Found.BEGUN else ()
        for path in (folder / name for name in (*BEGUN, *MODELS) if name not in kept):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    with write_atomically(folder / "config.yaml") as file:
        file.write(settings_to_yaml(settings).encode())


def _step_of_model(folder: Path) -> int | None:
    """The step whose weights are in a folder; None where there is none that can be read."""
    try:
        with safe_open(folder / "model.safetensors", framework="numpy") as file:
            return int(file.metadata()["step"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None

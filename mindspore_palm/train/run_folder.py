"""The folder of a run: whether it is new or goes on, checked before hours of work; nothing in it is lost by mistake."""

from __future__ import annotations

import enum
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mindspore_palm.checkpoint.adapter import ADAPTER
from mindspore_palm.checkpoint.cleanup import delete_own_files, free_name
from mindspore_palm.checkpoint.format import (
    ALL,
    Checkpoint,
    DamagedCheckpoint,
    discard,
    folder_name,
    has_our_files,
    steps_in,
)
from mindspore_palm.checkpoint.identity import is_model_of
from mindspore_palm.checkpoint.manager import clear
from mindspore_palm.checkpoint.model_folder import MODEL_FILES
from mindspore_palm.checkpoint.progress import REWINDS
from mindspore_palm.checkpoint.timeline import CHECKPOINTS, current_checkpoint
from mindspore_palm.config import Settings
from mindspore_palm.console import say
from mindspore_palm.errors import UserError
from mindspore_palm.files import check_links, try_lock, write_atomically
from mindspore_palm.settings import load_settings, settings_to_yaml
from mindspore_palm.train.continuation import NAMES, StartOptions, check_same, differences
from mindspore_palm.train.finetune import check_text
from mindspore_palm.train.log.metrics import EVENT_FILES, other_rows, unread_lines

FILES = ("metrics.csv", "loss.png", REWINDS, ADAPTER)
BOARDS = ("tensorboard", "tensorboard.tmp")
BEGUN = (*FILES, *BOARDS, CHECKPOINTS)
MODELS = ("final", "interrupted")  # what is hours of work by itself; earlier versions left the second one
LOCK_TIMEOUT = 20.0  # seconds for the processes of a command that was killed to be gone


class RunFolderState(enum.IntEnum):
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
        end = time.monotonic() + LOCK_TIMEOUT
        while not try_lock(file):
            if time.monotonic() > end:
                raise UserError(f"another process is training in {folder}; set train.output to another folder")
            time.sleep(0.2)
        probe = free_name(folder / "writable")
        with write_atomically(probe) as content:
            content.write(b"this run can write here\n")
        probe.unlink()
        yield  # closing the file frees the lock; so does a kill


def check_run_folder(settings: Settings, start: StartOptions) -> RunFolderState:
    """What a run finds in its folder; changes nothing there.

    Raises:
        UserError: the folder holds a run that this one is no continuation of.
    """
    folder, steps, before = Path(settings.train.output), settings.train.steps, settings
    check_places(folder)
    if start.overwrite:
        check_nothing_is_elsewhere(folder)
        return RunFolderState.NOTHING
    there = steps_in(folder / CHECKPOINTS)
    if not there:
        if start.rewind_to is not None:
            raise UserError(f"--rewind-to {start.rewind_to}: there is no checkpoint in {folder / CHECKPOINTS}")
        if any(holds_something(folder / name) for name in MODELS):
            raise UserError(
                f"{folder} holds a run already, which left no checkpoint to go on from; set train.output to another "
                "folder, or delete that run by --overwrite"
            )
        if not any(holds_something(folder / name) for name in BEGUN):
            return RunFolderState.NOTHING
        if (folder / "config.yaml").exists():
            check_same(load_settings(folder / "config.yaml")[0], settings, start, folder)
        return RunFolderState.BEGUN
    for step in there:
        try:
            config = Checkpoint(folder / CHECKPOINTS / folder_name(step)).folder / "config.yaml"
        except DamagedCheckpoint:
            continue  # said when the run goes on from the one before
        before = load_settings(config)[0]
        check_same(before, settings, start, folder)
        break
    if start.asked:
        return RunFolderState.CHECKPOINTS
    if there[0] > steps:
        raise UserError(
            f"{folder} has taken {there[0]:,} steps, and train.steps is {steps:,}; set train.steps higher to go on, "
            "or go back by --rewind-to"
        )
    newest = current_checkpoint(folder) if there[0] == steps else None
    if not (newest and newest.step == steps and is_model_of(folder / "final", newest)):
        return RunFolderState.CHECKPOINTS
    if set(differences(before, settings)) & set(NAMES):  # else a run on another text would be said to be finished
        check_text(settings, start, newest.state)
    return RunFolderState.FINISHED


def finished(settings: Settings) -> str:
    """What is said where there is nothing left to do."""
    folder, steps = Path(settings.train.output), settings.train.steps
    return (
        f"the run in {folder} is finished: {steps:,} steps, and its model is in {folder / 'final'}; set train.steps "
        "higher to go on, or begin anew in another train.output, or by --overwrite"
    )


def start_run_folder(folder: Path, settings: Settings, found: RunFolderState) -> None:
    """Deletes an earlier run that is not resumed, now that this one is sure to start, and writes the settings.

    What others put there stays, and nothing outside the folder is deleted.

    Raises:
        OSError: a file could not be deleted or written.
    """
    if found in (RunFolderState.NOTHING, RunFolderState.BEGUN):
        kept = (REWINDS,) if found is RunFolderState.BEGUN else ()
        for name in FILES:
            if name not in kept and not (folder / name).is_dir():
                (folder / name).unlink(missing_ok=True)
        for name in BOARDS:
            delete_own_files(folder / name, EVENT_FILES)
        for name in MODELS:
            delete_own_files(folder / name, MODEL_FILES)
        delete_checkpoints(folder / CHECKPOINTS)
    else:
        keep_edited_settings(folder, settings)
    with write_atomically(folder / "config.yaml") as file:
        file.write(settings_to_yaml(settings).encode())


def keep_edited_settings(folder: Path, settings: Settings) -> None:
    """Keeps a copy of a config.yaml that somebody has changed: a run writes its settings there, and reads none.

    Raises:
        OSError: it could not be copied.
    """
    file, newest = folder / "config.yaml", current_checkpoint(folder)
    if not file.exists() or newest is None:
        return
    try:
        found = load_settings(file)[0]
        known = (settings, load_settings(newest.folder / "config.yaml")[0])
        edited = all(differences(found, other) for other in known)
    except UserError:
        edited = True
    if edited:
        aside = free_name(folder / "config.yaml.other")
        shutil.copyfile(file, aside)
        say(
            f"{file} was changed by somebody: it records the settings of the run, and none are read from it; it is "
            f"kept as {aside.name}"
        )


def set_other_rows_aside(folder: Path, losses: Iterable[tuple[int, str]]) -> None:
    """Gives metrics.csv another name if it is not the one of this run: what follows would cut it and add to it.

    Args:
        folder: of the run.
        losses: that the checkpoint knows, as ``last_losses`` gave them.

    Raises:
        OSError: it could not be renamed.
    """
    table = folder / "metrics.csv"
    if other_rows(table, losses):
        aside = free_name(folder / "metrics.csv.other")
        os.replace(table, aside)
        say(f"{table} has other losses than this run: it is set aside as {aside.name}")
    elif unread_lines(table) > 1:  # one may have been cut off by a kill
        aside = free_name(folder / "metrics.csv.other")
        shutil.copyfile(table, aside)
        say(f"{table} has lines that are not its next rows: it is kept as {aside.name}, and they are taken out")


def delete_checkpoints(folder: Path) -> None:
    """Deletes all checkpoints of a run, the damaged and unfinished ones as well, and their folder if it is empty then.

    Raises:
        OSError: one could not be deleted.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    clear(folder)
    for path in folder.iterdir():
        if ALL.fullmatch(path.name):
            discard(path)
    with suppress(OSError):  # what others put there
        folder.rmdir()


def check_places(folder: Path) -> None:
    """Sees that a run can write where its files belong.

    A link is followed to the folder of the run, of its checkpoints and of TensorBoard's files. Other files of a run are
    replaced each time that they are written, which would put a file in the place of a link.

    Raises:
        UserError: names the link, or the file that is in the way.
    """
    check_links(folder, "train.output")
    for name in (CHECKPOINTS, "tensorboard", *MODELS[:1]):
        path = folder / name
        if path.is_symlink() and (name in MODELS or not path.is_dir()):
            what = "and a run replaces what is there" if path.is_dir() else "where there is no folder"
            raise UserError(f"{path} is a link to {os.readlink(path)}, {what}; remove the link")
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, and a run keeps a folder there; move it away")
    for name in (*FILES, "config.yaml"):
        path = folder / name
        if path.is_symlink():
            raise UserError(f"{path} is a link to {os.readlink(path)}, which a run would replace; remove the link")
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "a pipe or a device"
            raise UserError(f"{path} is {what}, and a run keeps a file there; move it away")


def check_nothing_is_elsewhere(folder: Path) -> None:
    """Sees that an earlier run can be deleted without following a link.

    Raises:
        UserError: its checkpoints, or the events of TensorBoard, are in another folder.
    """
    for name in (CHECKPOINTS, "tensorboard"):
        path = folder / name
        if path.is_symlink() and holds_something(path):
            raise UserError(
                f"--overwrite: {path} is a link to {os.readlink(path)}, and nothing outside {folder} is deleted; empty "
                "that folder yourself, or remove the link"
            )


def holds_something(path: Path) -> bool:
    """Whether something of a run is at a path: a file, or a folder that is not just what others put there."""
    if not path.is_dir():
        return path.exists()
    if path.name == CHECKPOINTS:
        return any(ALL.fullmatch(entry.name) and has_our_files(entry) for entry in path.iterdir())
    names = EVENT_FILES if path.name in BOARDS else MODEL_FILES
    entries = [entry.name for entry in path.iterdir()]
    return (not entries and path.name in MODELS) or any(names.fullmatch(name) for name in entries)

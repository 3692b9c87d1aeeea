"""The folder of a run: checked before hours of work are spent, and protected against loss by mistake."""

from __future__ import annotations

import enum
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mindspore_palm.checkpoint.cleanup import delete_own_files, free_name
from mindspore_palm.checkpoint.format import (
    CHECKPOINT_FOLDER,
    Checkpoint,
    DamagedCheckpoint,
    discard,
    folder_name,
    has_our_files,
    steps_in,
)
from mindspore_palm.checkpoint.identity import is_model_of
from mindspore_palm.checkpoint.manager import delete_incomplete
from mindspore_palm.checkpoint.model_folder import MODEL_FILES, delete_model
from mindspore_palm.checkpoint.timeline import current_checkpoint
from mindspore_palm.config import Settings
from mindspore_palm.console import say
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import (
    ADAPTER,
    CHECKPOINTS,
    CONFIG,
    FINAL,
    LOCK,
    LOSS_CHART,
    METRICS,
    OTHER,
    PROFILE,
    PROFILE_REPORT,
    REWINDS,
    TEMPORARY,
    TENSORBOARD,
    TRACE,
    TRACKERS,
)
from mindspore_palm.files import check_links, names_pattern, try_lock, write_atomically
from mindspore_palm.settings import load_settings, settings_to_yaml
from mindspore_palm.train.continuation import TEXT_SETTINGS, StartOptions, check_unchanged, differences
from mindspore_palm.train.finetune import check_text
from mindspore_palm.train.log.metrics import count_unreadable_lines, has_other_losses
from mindspore_palm.train.log.tensorboard import EVENT_FILES

FILES = (METRICS, LOSS_CHART, TRACKERS, REWINDS, ADAPTER)
EVENT_FOLDERS = (TENSORBOARD, f"{TENSORBOARD}{TEMPORARY}")  # earlier versions left the second one
TRACES = (*FILES, *EVENT_FOLDERS, CHECKPOINTS)  # of a run that has started
LOCK_TIMEOUT = 20.0  # seconds for the processes of a killed command to end


class RunFolderState(enum.IntEnum):
    """State of the run in a folder."""

    EMPTY = 0
    """No run, or one that will be deleted."""
    STARTED = 1
    """A run that ended before its first checkpoint."""
    RESUMABLE = 2
    """A run with checkpoints."""
    FINISHED = 3


@contextmanager
def locked_run_folder(folder: Path) -> Iterator[None]:
    """Creates and locks the folder of a run, so that no other process trains in it; checks that it is writable.

    Raises:
        UserError: another process is training in it.
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "ab") as file:
        end = time.monotonic() + LOCK_TIMEOUT
        while not try_lock(file):
            if time.monotonic() > end:
                raise UserError(f"another process is training in {folder}; set train.output to another folder")
            time.sleep(0.2)
        probe = free_name(folder / "writable")
        with write_atomically(probe) as content:
            content.write(b"this run can write here\n")
        probe.unlink()
        yield  # closing the file releases the lock; so does a kill


def check_run_folder(settings: Settings, start: StartOptions) -> RunFolderState:
    """State of the run's folder, in which nothing is changed.

    Raises:
        UserError: the folder holds another run, which this one cannot resume.
    """
    folder, steps, before = Path(settings.train.output), settings.train.steps, settings
    check_paths(folder)
    if start.overwrite:
        check_deletable(folder)
        return RunFolderState.EMPTY
    checkpoints = steps_in(folder / CHECKPOINTS)
    if not checkpoints:
        if start.rewind_to is not None:
            raise UserError(f"--rewind-to {start.rewind_to}: there is no checkpoint in {folder / CHECKPOINTS}")
        if has_run_files(folder / FINAL):
            raise UserError(
                f"{folder} holds a run already, which left no checkpoint to resume from; set train.output to "
                "another folder, or delete that run with --overwrite"
            )
        if not any(has_run_files(folder / name) for name in TRACES):
            return RunFolderState.EMPTY
        if (folder / CONFIG).exists():
            check_unchanged(load_settings(folder / CONFIG)[0], settings, start, folder)
        return RunFolderState.STARTED
    for step in checkpoints:
        try:
            config = Checkpoint(folder / CHECKPOINTS / folder_name(step)).folder / CONFIG
        except DamagedCheckpoint:
            continue  # logged when the run resumes from an older one
        before = load_settings(config)[0]
        check_unchanged(before, settings, start, folder)
        break
    if start.asked:
        return RunFolderState.RESUMABLE
    if checkpoints[0] > steps:
        raise UserError(
            f"{folder} has taken {checkpoints[0]:,} steps, and train.steps is {steps:,}; set train.steps higher to "
            "continue, or go back with --rewind-to"
        )
    newest = current_checkpoint(folder) if checkpoints[0] == steps else None
    if not (newest and newest.step == steps and is_model_of(folder / FINAL, newest)):
        return RunFolderState.RESUMABLE
    if set(differences(before, settings)) & set(TEXT_SETTINGS):  # on another text, the run is not finished
        check_text(settings, start, newest.state)
    return RunFolderState.FINISHED


def finished_message(settings: Settings) -> str:
    """Message for a run that has nothing left to do."""
    folder, steps = Path(settings.train.output), settings.train.steps
    return (
        f"the run in {folder} is finished: {steps:,} steps, and its model is in {folder / FINAL}; set train.steps "
        "higher to continue, or start over in another train.output, or with --overwrite"
    )


def start_run_folder(folder: Path, settings: Settings, state: RunFolderState) -> None:
    """Deletes an earlier run that is not resumed, and writes the settings. Called once this run is sure to start.

    Files of others stay, and nothing outside the folder is deleted.

    Raises:
        OSError: a file could not be deleted or written.
    """
    if state in (RunFolderState.EMPTY, RunFolderState.STARTED):
        kept = (REWINDS,) if state is RunFolderState.STARTED else ()
        for name in FILES:
            if name not in kept and not (folder / name).is_dir():
                (folder / name).unlink(missing_ok=True)
        for name in EVENT_FOLDERS:
            delete_own_files(folder / name, EVENT_FILES)
        delete_own_files(folder / PROFILE, names_pattern(re.escape(TRACE), re.escape(PROFILE_REPORT)))
        delete_model(folder / FINAL)
        delete_checkpoints(folder / CHECKPOINTS)
    else:
        back_up_edited_settings(folder, settings)
    with write_atomically(folder / CONFIG) as file:
        file.write(settings_to_yaml(settings).encode())


def back_up_edited_settings(folder: Path, settings: Settings) -> None:
    """Copies a config.yaml that somebody has edited: a run overwrites it with its settings and never reads it.

    Raises:
        OSError: it could not be copied.
    """
    file, newest = folder / CONFIG, current_checkpoint(folder)
    if not file.exists() or newest is None:
        return
    try:
        content = load_settings(file)[0]
        known = (settings, load_settings(newest.folder / CONFIG)[0])
        edited = all(differences(content, other) for other in known)
    except UserError:
        edited = True
    if edited:
        aside = free_name(folder / f"{CONFIG}{OTHER}")
        shutil.copyfile(file, aside)
        say(
            f"{file} was edited; it records the settings of the run, and none are read from it; it is kept as "
            f"{aside.name}"
        )


def set_foreign_metrics_aside(folder: Path, losses: Iterable[tuple[int, str]]) -> None:
    """Renames metrics.csv if it belongs to another run; otherwise it would be truncated and appended to.

    Args:
        folder: of the run.
        losses: of the checkpoint, from ``last_losses``.

    Raises:
        OSError: it could not be renamed.
    """
    table = folder / METRICS
    if has_other_losses(table, losses):
        aside = free_name(folder / f"{METRICS}{OTHER}")
        os.replace(table, aside)
        say(f"{table} has other losses than this run: it is set aside as {aside.name}")
    elif count_unreadable_lines(table) > 1:  # a kill may have truncated one
        aside = free_name(folder / f"{METRICS}{OTHER}")
        shutil.copyfile(table, aside)
        say(f"{table} has lines that are not its next rows: it is kept as {aside.name}, and they are removed")


def delete_checkpoints(folder: Path) -> None:
    """Deletes all checkpoints of a run, damaged and incomplete ones too, and their folder if that leaves it empty.

    Raises:
        OSError: one could not be deleted.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    delete_incomplete(folder)
    for path in folder.iterdir():
        if CHECKPOINT_FOLDER.fullmatch(path.name):
            discard(path)
    with suppress(OSError):  # files of others are in it
        folder.rmdir()


def check_paths(folder: Path) -> None:
    """Checks that a run can write all its files.

    Links to the folders of the run, its checkpoints and TensorBoard's files are followed. Other files are replaced
    each time they are written, which would replace a link.

    Raises:
        UserError: names the link, or the file that is in the way.
    """
    check_links(folder, "train.output")
    for name in (CHECKPOINTS, TENSORBOARD, FINAL):
        path = folder / name
        if path.is_symlink() and (name == FINAL or not path.is_dir()):
            reason = "and a run replaces what is there" if path.is_dir() else "where there is no folder"
            raise UserError(f"{path} is a link to {os.readlink(path)}, {reason}; remove the link")
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, and a run keeps a folder there; move it away")
    for name in (*FILES, CONFIG):
        path = folder / name
        if path.is_symlink():
            raise UserError(f"{path} is a link to {os.readlink(path)}, which a run would replace; remove the link")
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "a pipe or a device"
            raise UserError(f"{path} is {kind}, and a run keeps a file there; move it away")


def check_deletable(folder: Path) -> None:
    """Checks that an earlier run can be deleted without following a link.

    Raises:
        UserError: its checkpoints or TensorBoard files are in another folder.
    """
    for name in (CHECKPOINTS, TENSORBOARD):
        path = folder / name
        if path.is_symlink() and has_run_files(path):
            raise UserError(
                f"--overwrite: {path} is a link to {os.readlink(path)}, and nothing outside {folder} is deleted; empty "
                "that folder yourself, or remove the link"
            )


def has_run_files(path: Path) -> bool:
    """Whether a path holds something of a run: a file, or a folder with files that a run writes."""
    if not path.is_dir():
        return path.exists()
    if path.name == CHECKPOINTS:
        return any(CHECKPOINT_FOLDER.fullmatch(entry.name) and has_our_files(entry) for entry in path.iterdir())
    names = EVENT_FILES if path.name in EVENT_FOLDERS else MODEL_FILES
    entries = [entry.name for entry in path.iterdir()]
    return (not entries and path.name == FINAL) or any(names.fullmatch(name) for name in entries)

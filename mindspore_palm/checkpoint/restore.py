"""The state of a run from its newest checkpoint that is complete, each worker reading its shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mindspore import Parameter

from mindspore_palm.checkpoint.cleanup import free_name
from mindspore_palm.checkpoint.format import Checkpoint, DamagedCheckpoint, Stored, discard, folder_name, steps_in
from mindspore_palm.checkpoint.padding import Repadded, with_rows
from mindspore_palm.checkpoint.progress import REWINDS, Progress, Rewind, read_rewinds, write_rewinds
from mindspore_palm.checkpoint.timeline import CHECKPOINTS, current_checkpoint, decisions, progress_of
from mindspore_palm.console import say
from mindspore_palm.errors import UserError
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.parallel.votes import Votes
from mindspore_palm.parallel.weights import placement_of, set_shard


def restore(folder: Path, state: Sequence[Parameter], votes: Votes) -> tuple[Progress, dict[str, Any]]:
    """Gives weights and optimizer state the values of the newest whole checkpoint, each worker reading its slices.

    A checkpoint that a decision to go back has left behind does not count. One that is damaged is set aside, and the
    one before is taken. All workers call this together, before the first step is compiled.

    Args:
        folder: of the run.
        state: everything that a step changes.
        votes: of the workers.

    Returns:
        Where the run stands, and what else the checkpoint knows; at step 0, with the initial weights, nothing.

    Raises:
        UserError: there are checkpoints and none is whole, or it is of another network.
    """
    rewinds, lead = decisions(folder), this_rank() == 0
    if lead and rewinds != read_rewinds(folder):
        say(f"{folder / REWINDS} lacks decisions to go back that the checkpoints know; they are taken from there")
        write_rewinds(folder, rewinds)
    while True:
        step = votes.broadcast(_newest(folder, rewinds) if lead else 0)
        if step == 0:
            return Progress(rewinds=rewinds, base=_base_of_newest(folder)), {}
        found, problem = None, ""
        try:
            found = Checkpoint(folder / CHECKPOINTS / folder_name(step))
            found.verify(found.share_of_files(this_rank(), current_layout().devices))
        except DamagedCheckpoint as error:
            problem = str(error)
        (damaged,) = votes(bool(problem))
        if not damaged:
            break
        if lead:
            _set_aside(folder / CHECKPOINTS / folder_name(step), problem or _what_is_wrong(found))
        votes()
    _check_tensors(found, state)
    for parameter in state:
        set_shard(parameter, _as_wanted(found, parameter).read)
    progress = progress_of(found)
    progress.rewinds = rewinds
    return progress, found.state


def discard_after(folder: Path, step: int) -> None:
    """Deletes the checkpoints of later steps, which the run has left behind.

    Raises:
        OSError: one could not be deleted.
    """
    for newer in steps_in(folder / CHECKPOINTS):
        if newer > step:
            discard(folder / CHECKPOINTS / folder_name(newer))


def _base_of_newest(folder: Path) -> str:
    """The model that fine-tuning started from, as the checkpoints know it that the run leaves behind."""
    for step in steps_in(folder / CHECKPOINTS):
        with suppress(DamagedCheckpoint):
            return progress_of(Checkpoint(folder / CHECKPOINTS / folder_name(step))).base
    return ""


def _newest(folder: Path, rewinds: Sequence[Rewind]) -> int:
    """The step of the newest checkpoint that no decision leaves behind; 0 for the initial weights."""
    if found := current_checkpoint(folder, rewinds, _set_aside):
        return found.step
    checkpoints = folder / CHECKPOINTS
    damaged = sorted(checkpoints.glob("*.damaged*"))
    if damaged and not any(rewind.to == 0 for rewind in rewinds):
        raise UserError(
            f"no checkpoint in {checkpoints} is whole; begin anew by --overwrite or in another train.output"
        )
    return 0


def _set_aside(checkpoint: Path, problem: str) -> None:
    aside = free_name(checkpoint.with_name(f"{checkpoint.name}.damaged"))
    say(f"{problem}; {checkpoint.name} is set aside as {aside.name}, going back to the one before")
    with suppress(FileNotFoundError):
        os.replace(checkpoint, aside)


def _what_is_wrong(checkpoint: Checkpoint | None) -> str:
    """The problem that another worker has found."""
    try:
        if checkpoint:
            checkpoint.verify()
    except DamagedCheckpoint as error:
        return str(error)
    return "another worker could not read its share of it"


def _as_wanted(checkpoint: Checkpoint, parameter: Parameter) -> Stored | Repadded | None:
    """A tensor of a checkpoint, with the padding that this network has; None where the checkpoint lacks it."""
    stored = checkpoint.tensors.get(parameter.name)
    return stored and with_rows(parameter.name, stored, placement_of(parameter).shape)


def _check_tensors(checkpoint: Checkpoint, state: Iterable[Parameter]) -> None:
    for parameter in state:
        stored, wanted = _as_wanted(checkpoint, parameter), placement_of(parameter).shape
        if stored is None or stored.shape != wanted:
            found = "lacks it" if stored is None else f"has it as {list(stored.shape)}"
            raise UserError(
                f"{parameter.name} is {list(wanted)} in this network, and {checkpoint.folder} {found}: "
                "a network cannot go on with weights of another one"
            )

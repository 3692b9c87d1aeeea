"""Restores a run from its newest complete checkpoint; each worker reads its own shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mindspore import Parameter

from mindspore_palm.checkpoint.cleanup import free_name
from mindspore_palm.checkpoint.format import Checkpoint, DamagedCheckpoint, StoredTensor, discard, folder_name, steps_in
from mindspore_palm.checkpoint.padding import Repadded, with_padding
from mindspore_palm.checkpoint.progress import Progress, Rewind, read_rewinds, write_rewinds
from mindspore_palm.checkpoint.timeline import all_rewinds, current_checkpoint, progress_of
from mindspore_palm.console import say
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import CHECKPOINTS, DAMAGED, REWINDS
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.parallel.votes import Votes
from mindspore_palm.parallel.weights import placement_of, set_shard


def restore(folder: Path, state: Sequence[Parameter], votes: Votes) -> tuple[Progress, dict[str, Any]]:
    """Loads weights and optimizer state from the newest complete checkpoint; each worker reads its own shards.

    Checkpoints after a step that the run went back to are ignored. A damaged checkpoint is set aside, and the previous
    one is used. All workers call this together, before the first step is compiled.

    Args:
        folder: of the run.
        state: everything that a step changes.
        votes: of the workers.

    Returns:
        The progress of the run, and the content of state.json; at step 0, with the initial weights, that is empty.

    Raises:
        UserError: all checkpoints are damaged, or the checkpoint is of another network.
    """
    rewinds, lead = all_rewinds(folder), this_rank() == 0
    if lead and rewinds != read_rewinds(folder):
        say(f"{folder / REWINDS} lacks decisions to go back that the checkpoints have; they are restored from there")
        write_rewinds(folder, rewinds)
    while True:
        step = votes.broadcast(_newest(folder, rewinds) if lead else 0)
        if step == 0:
            return Progress(rewinds=rewinds, base=_base_of_newest(folder)), {}
        checkpoint, problem = None, ""
        try:
            checkpoint = Checkpoint(folder / CHECKPOINTS / folder_name(step))
            checkpoint.verify(checkpoint.files_to_verify(this_rank(), current_layout().devices))
        except DamagedCheckpoint as error:
            problem = str(error)
        (damaged,) = votes(bool(problem))
        if checkpoint and not damaged:
            break
        if lead:
            _set_aside(folder / CHECKPOINTS / folder_name(step), problem or _problem_of(checkpoint))
        votes()
    _check_tensors(checkpoint, state)
    for parameter in state:
        tensor = _repadded(checkpoint, parameter)
        assert tensor  # noqa: S101 - checked above
        set_shard(parameter, tensor.read)
    progress = progress_of(checkpoint)
    progress.rewinds = rewinds
    return progress, checkpoint.state


def discard_after(folder: Path, step: int) -> None:
    """Deletes the checkpoints of later steps, which the run has gone back from.

    Raises:
        OSError: one could not be deleted.
    """
    for newer in steps_in(folder / CHECKPOINTS):
        if newer > step:
            discard(folder / CHECKPOINTS / folder_name(newer))


def _base_of_newest(folder: Path) -> str:
    """Identity of the model that fine-tuning started from, read from the checkpoints that the run goes back from."""
    for step in steps_in(folder / CHECKPOINTS):
        with suppress(DamagedCheckpoint):
            return progress_of(Checkpoint(folder / CHECKPOINTS / folder_name(step))).base
    return ""


def _newest(folder: Path, rewinds: Sequence[Rewind]) -> int:
    """The step of the checkpoint that the run resumes from; 0 for the initial weights."""
    if checkpoint := current_checkpoint(folder, rewinds, _set_aside):
        return checkpoint.step
    checkpoints = folder / CHECKPOINTS
    damaged = sorted(checkpoints.glob(f"*{DAMAGED}*"))
    if damaged and not any(rewind.to == 0 for rewind in rewinds):
        raise UserError(
            f"no checkpoint in {checkpoints} is complete; start over with --overwrite or in another train.output"
        )
    return 0


def _set_aside(checkpoint: Path, problem: str) -> None:
    aside = free_name(checkpoint.with_name(f"{checkpoint.name}{DAMAGED}"))
    say(f"{problem}; {checkpoint.name} is set aside as {aside.name}, going back to the one before")
    with suppress(FileNotFoundError):
        os.replace(checkpoint, aside)


def _problem_of(checkpoint: Checkpoint | None) -> str:
    """The problem that another worker found in a checkpoint."""
    try:
        if checkpoint:
            checkpoint.verify()
    except DamagedCheckpoint as error:
        return str(error)
    return "another worker could not read its files"


def _repadded(checkpoint: Checkpoint, parameter: Parameter) -> StoredTensor | Repadded | None:
    """A tensor of a checkpoint with the padding rows of this network; None if the checkpoint lacks the tensor."""
    stored = checkpoint.tensors.get(parameter.name)
    return stored and with_padding(parameter.name, stored, placement_of(parameter).shape)


def _check_tensors(checkpoint: Checkpoint, state: Iterable[Parameter]) -> None:
    for parameter in state:
        stored, shape = _repadded(checkpoint, parameter), placement_of(parameter).shape
        if stored is None or stored.shape != shape:
            difference = "lacks it" if stored is None else f"has it as {list(stored.shape)}"
            raise UserError(
                f"{parameter.name} is {list(shape)} in this network, and {checkpoint.folder} {difference}: "
                "a network cannot resume from weights of another one"
            )

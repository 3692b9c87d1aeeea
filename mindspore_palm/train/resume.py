"""Going on: with the same settings, as far as they matter, from the newest checkpoint that is whole."""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore import Parameter

from mindspore_palm.config import Settings
from mindspore_palm.data import Batches
from mindspore_palm.errors import UserError
from mindspore_palm.parallel.agree import Agreement
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.parallel.weights import placement_of, set_slice
from mindspore_palm.train.checkpoint import Checkpoint, DamagedCheckpoint, Stored, discard, folder_name, steps_in
from mindspore_palm.train.padding import Repadded, with_rows
from mindspore_palm.train.progress import Progress, Rewind, read_rewinds, write_rewinds
from mindspore_palm.train.speak import say

FREE = (
    "model.preset",  # a name; the sizes themselves are compared
    "model.vocab_multiple",  # rows that no token has; another mesh may want others
    "data.prepared",
    "train.steps",
    "train.micro_batch",
    "train.eval_*",
    "train.output",
    "train.device",
    "train.peak_tflops",
    "train.checkpoint_*",
    "train.keep_*",
    "train.spike*",
    "parallel.*",
)
"""Settings that may change between a checkpoint and the run that goes on from it: the rest decides what is learned."""


@dataclass(frozen=True)
class Start:
    """How a run begins, apart from its settings."""

    overwrite: bool = False
    """Delete an earlier run in the same folder."""
    accept: tuple[str, ...] = ()
    """Settings that matter and may have changed all the same."""
    rewind_to: int | None = None
    """Go back to the newest checkpoint that is not behind this step."""
    skip_batches: tuple[int, int] | None = None
    """Leave out these batches: from, and up to. Batch k is what step k + 1 takes when none is left out."""
    max_restarts: int = 0
    """How often workers are started again after one has died."""

    @property
    def asked(self) -> str:
        """What was asked for by hand, as arguments; empty if nothing was."""
        back = f"--rewind-to {self.rewind_to}" if self.rewind_to is not None else ""
        skip = "--skip-batches {}:{}".format(*self.skip_batches) if self.skip_batches else ""
        return f"{back} {skip}".strip()


def start_from(arguments: argparse.Namespace) -> Start:
    """What a command's arguments ask for.

    Raises:
        UserError: one of them makes no sense; says what to write.
    """
    for name in arguments.accept:
        section, _, key = name.partition(".")
        group = Settings.model_fields.get(section)
        if group is None or key not in group.annotation.model_fields:
            raise UserError(f"--accept {name}: there is no such setting; give section.key, for example data.path")
    for name in ("rewind_to", "max_restarts"):
        if (getattr(arguments, name) or 0) < 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: must not be negative")
    batches = None
    if arguments.skip_batches is not None:
        found = re.fullmatch(r"(\d+):(\d+)", arguments.skip_batches)
        batches = (int(found.group(1)), int(found.group(2))) if found else (0, 0)
        if batches[0] >= batches[1]:
            raise UserError(f"--skip-batches {arguments.skip_batches}: write FROM:TO, for example 200:400")
    return Start(arguments.overwrite, tuple(arguments.accept), arguments.rewind_to, batches, arguments.max_restarts)


def is_free(name: str) -> bool:
    """Whether a setting may change in a run that has begun."""
    return any(fnmatch.fnmatch(name, free) for free in FREE)


def differences(before: Settings, now: Settings) -> dict[str, tuple[Any, Any]]:
    """Names of the settings that matter and differ, each with its value before and now."""
    old, new = (
        {
            f"{section}.{name}": value
            for section, group in settings.model_dump(mode="json").items()
            for name, value in group.items()
        }
        for settings in (before, now)
    )
    stretched = now.optimizer.schedule == "cosine"  # whose rate depends on where it ends
    return {
        name: (old[name], new[name])
        for name in old
        if old[name] != new[name] and (not is_free(name) or (name == "train.steps" and stretched))
    }


def check_same(before: Settings, now: Settings, start: Start, folder: Path) -> None:
    """Sees that a run goes on with what it was begun with.

    Raises:
        UserError: shows each setting that matters and differs, unless it was accepted by name.
    """
    changed = {name: pair for name, pair in differences(before, now).items() if name not in start.accept}
    if changed:
        lines = "".join(f"\n  {name} was {old} and is {new} now" for name, (old, new) in changed.items())
        force = " ".join(f"--accept {name}" for name in changed)
        raise UserError(
            f"{folder} was trained with other settings:{lines}\n"
            f"set them back, or force them by {force}; or begin anew in another train.output, or by --overwrite"
        )


def decide_by_hand(folder: Path, start: Start, batches: Batches) -> None:
    """Writes down what ``--rewind-to`` and ``--skip-batches`` ask for, once: the same command again goes on.

    Args:
        folder: of the run.
        start: what is asked for.
        batches: of the run, with what it leaves out already.

    Raises:
        UserError: there is no such checkpoint, or the batches were trained on before it.
    """
    rewinds, steps = read_rewinds(folder), steps_in(folder / "checkpoints")
    if any(rewind.asked == start.asked for rewind in rewinds):
        say(f"{start.asked}: was done before; going on")
        return
    newest = max(steps, default=0)
    to = newest
    if start.rewind_to is not None:
        to = max((step for step in steps if step <= start.rewind_to), default=0)
        if to == 0 < start.rewind_to:
            there = ", ".join(map(str, reversed(steps)))
            raise UserError(f"--rewind-to {start.rewind_to}: the checkpoints that are there are of steps {there}")
    skip = (0, 0)
    if start.skip_batches:
        first, last = (batches.sequences_before(batch) for batch in start.skip_batches)
        skip = (max(first, batches.position(to)), last)
        if skip[0] >= skip[1]:
            raise UserError(
                f"--skip-batches {start.skip_batches[0]}:{start.skip_batches[1]}: the run goes on from step {to:,}, "
                "and was trained on all of them before; go back further by --rewind-to"
            )
    write_rewinds(folder, [*rewinds, Rewind(f"by hand: {start.asked}", newest, to, skip, start.asked)])
    say(f"{start.asked}: going on from step {to}")


def restore(folder: Path, state: Sequence[Parameter], agreement: Agreement) -> tuple[Progress, dict[str, Any]]:
    """Gives weights and optimizer state the values of the newest whole checkpoint, each worker reading its slices.

    A checkpoint that a decision to go back has left behind does not count. One that is damaged is set aside, and the
    one before is taken. All workers call this together, before the first step is compiled.

    Args:
        folder: of the run.
        state: everything that a step changes.
        agreement: of the workers.

    Returns:
        Where the run stands, and what else the checkpoint knows; at step 0, with the initial weights, nothing.

    Raises:
        UserError: there are checkpoints and none is whole, or it is of another network.
    """
    rewinds, lead = read_rewinds(folder), this_rank() == 0
    while True:
        step = agreement.told_by_first(_newest(folder / "checkpoints", rewinds) if lead else 0)
        if step == 0:
            return Progress(rewinds=rewinds), {}
        found, problem = None, ""
        try:
            found = Checkpoint(folder / "checkpoints" / folder_name(step))
            found.verify(found.share_of_files(this_rank(), current_layout().devices))
        except DamagedCheckpoint as error:
            problem = str(error)
        (damaged,) = agreement(bool(problem))
        if not damaged:
            break
        if lead:
            _set_aside(folder / "checkpoints" / folder_name(step), problem or _what_is_wrong(found))
        agreement()
    _check_tensors(found, state)
    for parameter in state:
        set_slice(parameter, _as_wanted(found, parameter).read)
    if lead:
        for newer in steps_in(folder / "checkpoints"):
            if newer > step:
                discard(folder / "checkpoints" / folder_name(newer))
    progress = Progress.from_json(found.state["progress"])
    progress.rewinds = rewinds
    return progress, found.state


def check_corpus(before: Mapping[str, Any], now: Mapping[str, Any], start: Start, settings: Settings) -> None:
    """Sees that the text behind ``data.path`` is the one that the run was begun with.

    Raises:
        UserError: it is not, and ``data.path`` was not accepted.
    """
    if before and before != now and "data.path" not in start.accept:
        name = next(name for name in now if before.get(name) != now[name])
        raise UserError(
            f"data.path = {settings.data.path}: its text changed since the run began ({name} was {before.get(name)} "
            f"and is {now[name]} now); bring the old text back, or force the new one by --accept data.path"
        )


def _newest(checkpoints: Path, rewinds: Sequence[Rewind]) -> int:
    """The step of the newest checkpoint that no decision leaves behind; 0 for the initial weights."""
    steps = steps_in(checkpoints)
    for step in steps:
        try:
            known = len(Checkpoint(checkpoints / folder_name(step)).state["progress"]["rewinds"])
        except DamagedCheckpoint as error:
            _set_aside(checkpoints / folder_name(step), str(error))
            continue
        if all(step <= rewind.to for rewind in rewinds[known:]):
            return step
    damaged = sorted(checkpoints.glob("*.damaged"))
    if damaged and not any(rewind.to == 0 for rewind in rewinds):
        raise UserError(
            f"no checkpoint in {checkpoints} is whole; begin anew by --overwrite or in another train.output"
        )
    return 0


def _set_aside(checkpoint: Path, problem: str) -> None:
    say(f"{problem}; {checkpoint.name} is set aside as {checkpoint.name}.damaged, going back to the one before")
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    discard(aside)
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

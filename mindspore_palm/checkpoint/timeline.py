"""Where a run stands: its newest checkpoint that no decision leaves behind, and which text comes next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mindspore_palm.checkpoint.format import CONFIG, Checkpoint, DamagedCheckpoint, folder_name, steps_in
from mindspore_palm.checkpoint.progress import REWINDS, Progress, Rewind, read_rewinds, skipped
from mindspore_palm.config import Settings
from mindspore_palm.data import Batches, Prepared
from mindspore_palm.data.order import Segment, order_name, sizes_from
from mindspore_palm.errors import UserError
from mindspore_palm.settings import load_settings

CHECKPOINTS = "checkpoints"


def current_checkpoint(
    folder: Path, rewinds: Sequence[Rewind] | None = None, damaged: Callable[[Path, str], None] = lambda *_: None
) -> Checkpoint | None:
    """The checkpoint that a run resumes from; None for the initial weights.

    Args:
        folder: of the run.
        rewinds: its decisions; None reads them.
        damaged: is told each newer checkpoint that is not whole, and why.

    Raises:
        UserError: the decisions cannot be read, or a checkpoint is of a run with others.
    """
    rewinds = read_rewinds(folder) if rewinds is None else rewinds
    for step in steps_in(folder / CHECKPOINTS):
        path = folder / CHECKPOINTS / folder_name(step)
        try:
            checkpoint = Checkpoint(path)
        except DamagedCheckpoint as error:
            damaged(path, str(error))
            continue
        known = progress_of(checkpoint).rewinds
        if known != rewinds[: len(known)]:
            raise UserError(
                f"{path} knows decisions to go back that {folder / REWINDS} does not hold: it is of another run, or "
                f"the file was altered; take the checkpoint away, or bring the file back"
            )
        if all(step <= rewind.to for rewind in rewinds[len(known) :]):
            return checkpoint
    return None


def decisions(folder: Path) -> list[Rewind]:
    """The decisions of a run; where their file was lost, those that its newest whole checkpoint knows.

    Raises:
        UserError: the file was altered.
    """
    rewinds = read_rewinds(folder)
    for step in steps_in(folder / CHECKPOINTS):
        try:
            known = progress_of(Checkpoint(folder / CHECKPOINTS / folder_name(step))).rewinds
        except DamagedCheckpoint:
            continue
        return known if len(known) > len(rewinds) and known[: len(rewinds)] == rewinds else rewinds
    return rewinds


def progress_of(checkpoint: Checkpoint) -> Progress:
    """What a checkpoint says of its run; of one that an older version wrote, its settings say which text it had."""
    progress = Progress.from_json(checkpoint.state.get("progress", {}))
    if not progress.segments and (checkpoint.folder / CONFIG).exists():
        progress.segments = first_segment(load_settings(checkpoint.folder / CONFIG)[0])
    return progress


def first_segment(settings: Settings) -> tuple[Segment, ...]:
    """The record of a run that starts with these settings."""
    ramp = tuple((start, size) for start, size in settings.train.batch_ramp())
    return (Segment(0, ramp, settings.data.seq_len, settings.train.seed),)


def batches_of(
    settings: Settings, prepared: Prepared, segments: Sequence[Segment] = (), rewinds: Sequence[Rewind] = ()
) -> Batches:
    """Training batches by the record of a run, less those that decisions leave out.

    Args:
        settings: of the run now.
        prepared: its text.
        segments: the record; empty for a run that starts.
        rewinds: the decisions.

    Raises:
        UserError: there is too little text.
    """
    last = (segments or first_segment(settings))[-1]
    left_out = skipped(rewinds, order_name(segments))
    return Batches(prepared.train, last.seq_len, prepared.tokenizer.eod, last.ramp, last.seed, left_out, segments)


def segments_from(
    step: int,
    progress: Progress,
    settings: Settings,
    prepared: Prepared,
    corpus: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
) -> tuple[Segment, ...]:
    """The record of a run that takes ``step`` and later ones with the settings of now.

    Args:
        step: the first of them; what the record has of it and later steps is of a past that the run left.
        progress: has the record, and the decisions.
        settings: of now.
        prepared: the text of now.
        corpus: fingerprints of the text before and of now; empty where it is the same.
    """
    first = first_segment(settings)
    record = tuple(s for s in progress.segments if s.step < step)
    if not record:
        return first
    now = first[0]
    if not same_text(*corpus):
        text = hashlib.sha256(json.dumps(corpus[1], sort_keys=True, default=str).encode()).hexdigest()[:16]
        return (*record, Segment(step, now.ramp, now.seq_len, now.seed, text=text))
    last = record[-1]
    if (now.ramp, now.seq_len, now.seed) == (last.ramp, last.seq_len, last.seed):
        return record
    before = batches_of(settings, prepared, record, progress.rewinds)
    return before.segments_after_change(step, now.ramp, now.seq_len, now.seed)


def same_text(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two fingerprints are of one text, as far as both say; versions differ in what they say."""
    for name in before.keys() & now.keys():
        one, other = before[name], now[name]
        if not (same_text(one, other) if isinstance(one, Mapping) and isinstance(other, Mapping) else one == other):
            return False
    return True


def what_changed(segments: Sequence[Segment], batches: Batches) -> str:
    """In words, what the last segment of a record takes up and from where; empty for the first one."""
    if len(segments) < 2:
        return ""
    before, now = segments[-2:]
    if now.text:
        return f"the text is another one from step {now.step:,} on; its first epoch begins there"
    if now.rest_of is not None:
        names = {"data.seq_len": before.seq_len != now.seq_len, "train.seed": before.seed != now.seed}
        return (
            f"{' and '.join(name for name, changed in names.items() if changed)} changed at step {now.step:,}: the "
            f"text of epoch {now.epoch + 1} that no step has taken comes first, as {batches.order.first_count:,} "
            "sequences"
        )
    return (
        f"the batches changed at step {now.step:,}: they continue with sequence {now.position:,} of the order, where "
        "the ones before ended"
    )


def next_step(folder: Path, overwrite: bool, rewind_to: int | None) -> int:
    """The step that a run would resume at, as far as its folder can be read; 0 for a new one."""
    if overwrite:
        return 0
    try:
        found = current_checkpoint(folder)
    except (UserError, OSError):  # said later, with all that belongs to it
        return 0
    step = found.step if found else 0
    if rewind_to is not None:
        step = max((there for there in steps_in(folder / CHECKPOINTS) if there <= rewind_to), default=0)
    return step


def ahead_of(settings: Settings, step: int) -> Settings:
    """Settings whose ramp has the sizes that a step from ``step`` on has, and no others."""
    ramp = settings.train.batch_ramp()
    sizes = sizes_from(ramp, step)
    left = ramp[len(ramp) - len(sizes) :]
    batch = [[start if number else 0, size] for number, (start, size) in enumerate(left)]
    if len(batch) == len(ramp):
        return settings
    return settings.model_copy(update={"train": settings.train.model_copy(update={"batch_size": batch})})

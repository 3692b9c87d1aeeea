"""Timeline of a run: the checkpoint it resumes from, and the text its next steps train on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mindspore_palm.checkpoint.format import Checkpoint, DamagedCheckpoint, folder_name, steps_in
from mindspore_palm.checkpoint.progress import Progress, Rewind, read_rewinds, skipped
from mindspore_palm.config import Settings
from mindspore_palm.data import Batches, Prepared
from mindspore_palm.data.order import Segment, order_name, sizes_from
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import CHECKPOINTS, CONFIG, REWINDS
from mindspore_palm.settings import load_settings


def current_checkpoint(
    folder: Path, rewinds: Sequence[Rewind] | None = None, damaged: Callable[[Path, str], None] = lambda *_: None
) -> Checkpoint | None:
    """The checkpoint that a run resumes from; None for the initial weights.

    Args:
        folder: of the run.
        rewinds: its decisions; None reads them.
        damaged: called with the path and the problem of each newer checkpoint that is damaged.

    Raises:
        UserError: the decisions cannot be read, or a checkpoint is of a run with other decisions.
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
                f"the file was altered; move the checkpoint away, or restore the file"
            )
        if all(step <= rewind.to for rewind in rewinds[len(known) :]):
            return checkpoint
    return None


def all_rewinds(folder: Path) -> list[Rewind]:
    """The decisions of a run; if their file was lost, those in its newest complete checkpoint.

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
    """Progress stored in a checkpoint. If an older version wrote it, the segments come from its settings."""
    progress = Progress.from_json(checkpoint.state.get("progress", {}))
    if not progress.segments and (checkpoint.folder / CONFIG).exists():
        progress.segments = first_segment(load_settings(checkpoint.folder / CONFIG)[0])
    return progress


def first_segment(settings: Settings) -> tuple[Segment, ...]:
    """Segments of a run that starts with these settings."""
    ramp = tuple((start, size) for start, size in settings.train.batch_ramp())
    return (Segment(0, ramp, settings.data.seq_len, settings.train.seed),)


def batches_of(
    settings: Settings, prepared: Prepared, segments: Sequence[Segment] = (), rewinds: Sequence[Rewind] = ()
) -> Batches:
    """Training batches of a run, without those that decisions skip.

    Args:
        settings: current ones of the run.
        prepared: its text.
        segments: of the run so far; empty for a new run.
        rewinds: the decisions.

    Raises:
        UserError: there is too little text.
    """
    last = (segments or first_segment(settings))[-1]
    skip = skipped(rewinds, order_name(segments))
    return Batches(prepared.train, last.seq_len, prepared.tokenizer.eod, last.ramp, last.seed, skip, segments)


def segments_from(
    step: int,
    progress: Progress,
    settings: Settings,
    prepared: Prepared,
    corpus: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
) -> tuple[Segment, ...]:
    """Segments of a run that takes step ``step`` and later ones with the current settings.

    Args:
        step: the first of them; segments from it on belong to a past that the run went back from.
        progress: has the segments so far, and the decisions.
        settings: current ones.
        prepared: current text.
        corpus: fingerprints of the earlier and the current text; empty if the text is the same.
    """
    first = first_segment(settings)
    past = tuple(s for s in progress.segments if s.step < step)
    if not past:
        return first
    now = first[0]
    if text_differences(*corpus):
        text = hashlib.sha256(json.dumps(corpus[1], sort_keys=True, default=str).encode()).hexdigest()[:16]
        return (*past, Segment(step, now.ramp, now.seq_len, now.seed, text=text))
    last = past[-1]
    if (now.ramp, now.seq_len, now.seed) == (last.ramp, last.seq_len, last.seed):
        return past
    before = batches_of(settings, prepared, past, progress.rewinds)
    return before.segments_after_change(step, now.ramp, now.seq_len, now.seed)


def text_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Entries in which two fingerprints of a text differ, such as ``train.tokens``, each with its two values.

    Only entries that both have are compared: versions record different ones.
    """
    differing: dict[str, tuple[Any, Any]] = {}
    for name in now:
        old, new = before.get(name), now[name]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            differing |= {f"{name}.{entry}": values for entry, values in text_differences(old, new).items()}
        elif old is not None and old != new:
            differing[name] = old, new
    return differing


def describe_change(segments: Sequence[Segment], batches: Batches) -> str:
    """A sentence on what changed with the last segment, and where its text begins; empty for the first segment."""
    if len(segments) < 2:
        return ""
    before, now = segments[-2:]
    if now.text:
        return f"the text changed at step {now.step:,}: its first epoch begins there"
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


def resume_step(folder: Path, overwrite: bool, rewind_to: int | None) -> int:
    """The step that a run would resume from, as far as its folder can be read; 0 for a new run."""
    if overwrite:
        return 0
    try:
        checkpoint = current_checkpoint(folder)
    except (UserError, OSError):  # reported in full later
        return 0
    step = checkpoint.step if checkpoint else 0
    if rewind_to is not None:
        step = max((saved for saved in steps_in(folder / CHECKPOINTS) if saved <= rewind_to), default=0)
    return step


def with_remaining_ramp(settings: Settings, step: int) -> Settings:
    """Settings whose batch size ramp has only the sizes of step ``step`` and later ones."""
    ramp = settings.train.batch_ramp()
    sizes = sizes_from(ramp, step)
    remaining = ramp[len(ramp) - len(sizes) :]
    batch_size = [[start if number else 0, size] for number, (start, size) in enumerate(remaining)]
    if len(batch_size) == len(ramp):
        return settings
    return settings.model_copy(update={"train": settings.train.model_copy(update={"batch_size": batch_size})})

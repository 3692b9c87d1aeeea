"""Going on: with the same settings, as far as they matter, from the newest checkpoint that is whole."""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore_palm.checkpoint.format import Checkpoint, DamagedCheckpoint, folder_name, steps_in
from mindspore_palm.checkpoint.progress import Progress, Rewind, write_rewinds
from mindspore_palm.checkpoint.timeline import (
    all_rewinds,
    batches_of,
    current_checkpoint,
    progress_of,
    segments_from,
    text_differences,
)
from mindspore_palm.config import Settings
from mindspore_palm.console import say
from mindspore_palm.data import Prepared
from mindspore_palm.data.files import printable
from mindspore_palm.data.prepare import Pinned
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import CHECKPOINTS, TOKENIZER
from mindspore_palm.train.base_model import has_moved
from mindspore_palm.train.state import fingerprint

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


NAMES = ("data.path", "data.text_field", "data.tokenizer")
"""Settings that say where a text lies: with a checkpoint that knows the content, they may change and it may not."""
CONTENT = "data.content"  # what --accept calls the text itself, which no setting is
BASE = "finetune.checkpoint"


@dataclass(frozen=True)
class StartOptions:
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


def start_from(arguments: argparse.Namespace) -> StartOptions:
    """What a command's arguments ask for.

    Raises:
        UserError: one of them makes no sense; says what to write.
    """
    for name in arguments.accept:
        if name == CONTENT:
            continue
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
    return StartOptions(
        arguments.overwrite, tuple(arguments.accept), arguments.rewind_to, batches, arguments.max_restarts
    )


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


def check_same(before: Settings, now: Settings, start: StartOptions, folder: Path) -> None:
    """Sees that a run goes on with what it was begun with.

    Raises:
        UserError: shows each setting that matters and differs, unless it was accepted by name.
    """
    changed = {name: pair for name, pair in differences(before, now).items() if name not in start.accept}
    if set(changed) & set(NAMES) and _knows_content(Path(folder)):  # check_corpus looks at the content itself
        changed = {name: pair for name, pair in changed.items() if name not in NAMES}
    if BASE in changed and has_moved(Path(folder), now):
        del changed[BASE]
    if changed:
        lines = "".join(f"\n  {name} was {old} and is {new} now" for name, (old, new) in changed.items())
        force = " ".join(f"--accept {name}" for name in changed)
        raise UserError(
            f"{folder} was trained with other settings:{lines}\n"
            f"set them back, or force them by {force}; or begin anew in another train.output, or by --overwrite"
        )


def decide_by_hand(folder: Path, start: StartOptions, settings: Settings, prepared: Prepared) -> None:
    """Writes down what ``--rewind-to`` and ``--skip-batches`` ask for, once: the same command again resumes.

    Args:
        folder: of the run.
        start: what is asked for.
        settings: of the run now.
        prepared: its text.

    Raises:
        UserError: there is no such checkpoint, or the batches were trained on before it.
    """
    rewinds, steps = all_rewinds(folder), steps_in(folder / CHECKPOINTS)
    if any(rewind.asked == start.asked for rewind in rewinds):
        say(f"{start.asked}: was done before; going on")
        return
    newest = current_checkpoint(folder, rewinds)
    at, to = max(steps, default=0), newest.step if newest else 0
    steps = [step for step in steps if step <= to]
    if start.rewind_to is not None:
        to = max((step for step in steps if step <= start.rewind_to), default=0)
        if to == 0 < start.rewind_to:
            there = ", ".join(map(str, reversed(steps)))
            raise UserError(f"--rewind-to {start.rewind_to}: the checkpoints that are there are of steps {there}")
    before = progress_of(newest) if newest else Progress()
    before.rewinds = rewinds
    corpus = newest.state.get("corpus", {}) if newest else {}, fingerprint(prepared)
    after = batches_of(settings, prepared, segments_from(to, before, settings, prepared, corpus), rewinds)
    skip = (0, 0)
    if start.skip_batches:
        named = "--skip-batches {}:{}".format(*start.skip_batches)
        # numbered as the run has taken them, and on from there with the sizes of now
        numbered = segments_from(newest.step if newest else 0, before, settings, prepared, corpus)
        numbering = batches_of(settings, prepared, numbered, rewinds)
        try:
            first, last = (numbering.nominal_position(batch) for batch in start.skip_batches)
        except ValueError:
            first = last = -1
        if last < 0 or numbering.order_name != after.order_name:
            raise UserError(
                f"{named}: the order of the text was changed between these batches and step {to:,}, from which the run "
                "resumes, so that they are other text now; go back alone by --rewind-to, and leave out batches after it"
            )
        skip = (max(first, after.position(to)), last)
        if skip[0] >= skip[1]:
            raise UserError(
                f"{named}: the run resumes from step {to:,}, and was trained on all of them before; go back further by "
                "--rewind-to"
            )
    decision = Rewind(f"by hand: {start.asked}", at, to, skip, start.asked, after.order_name)
    write_rewinds(folder, [*rewinds, decision])
    say(f"{start.asked}: going on from step {to}")


def check_corpus(before: Mapping[str, Any], now: Mapping[str, Any], start: StartOptions, settings: Settings) -> None:
    """Sees that tokenizer and text are those that the run was begun with, by their content: wherever they lie.

    Of a run of an earlier version, which kept no hash of its tokens, their numbers are compared.

    Args:
        before: as ``fingerprint`` gave it when the checkpoint was written; empty if there is none.
        now: the same of the text as it is.
        start: what is accepted.
        settings: names the text.

    Raises:
        UserError: one of them is another, and that was not accepted.
    """
    if not before:
        return
    other_tokenizer = before.get("tokenizer") != now.get("tokenizer")
    if other_tokenizer and "data.tokenizer" not in start.accept:
        raise UserError(
            f"data.tokenizer = {settings.data.tokenizer or '(trained on the text)'}: this is not the tokenizer that "
            "the run was begun with, and its tokens are what the weights know; leave data.tokenizer as it was, or "
            "force this one by --accept data.tokenizer: the run resumes, and has to learn what the tokens mean anew"
        )
    of_tokens = ("tokens", "sha256", "gzip9_bits_per_byte") if other_tokenizer else ()
    changes = _changes(
        {
            name: values
            for name, values in text_differences(before, now).items()
            if name != "tokenizer" and name.rpartition(".")[2] not in of_tokens
        }
    )
    if changes and CONTENT not in start.accept:
        raise UserError(
            f"data.path = {printable(settings.data.path)}: its text changed since the run began "
            f"({'; '.join(changes)}); bring the old text back, or train on the new one by --accept {CONTENT}: the run "
            "resumes at its step, with its tokenizer, and its next batches come from the new text, some of which it "
            "may have seen"
        )


def _changes(differences: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Sentences for the differences of two fingerprints; a difference that follows from another one gets none."""
    sentences = []
    for name, (old, new) in differences.items():
        split, _, entry = name.rpartition(".")
        if not split and not sentences:
            sentences.append(f"{name} was {old} and is {new} now")
        elif split and entry != "sha256":
            sentences.append(f"{split} had {old} {entry} and has {new} now")
        elif split and not any(other.startswith(f"{split}.") for other in differences if other != name):
            sentences.append(f"{split} has as many tokens as before, but other ones or in another order")
    return sentences


def kept_text(folder: Path) -> Pinned | None:
    """What a run in a folder keeps of how its text was prepared; None if there is no checkpoint that knows it."""
    for step in steps_in(folder / CHECKPOINTS):
        try:
            checkpoint = Checkpoint(folder / CHECKPOINTS / folder_name(step))
            tokenizer = (checkpoint.folder / TOKENIZER).read_bytes()
            corpus = checkpoint.state["corpus"]
        except (DamagedCheckpoint, OSError, KeyError):
            continue
        if hashlib.sha256(tokenizer).hexdigest() == corpus.get("tokenizer"):
            return Pinned(tokenizer, any_share=corpus.get("any_share", not _has_hash(corpus)))
    return None


def _knows_content(folder: Path) -> bool:
    """Whether the newest checkpoint of a run has a hash of what it was trained on."""
    for step in steps_in(folder / CHECKPOINTS):
        with suppress(DamagedCheckpoint):
            return _has_hash(Checkpoint(folder / CHECKPOINTS / folder_name(step)).state.get("corpus", {}))
    return False


def _has_hash(corpus: Mapping[str, Any]) -> bool:
    return "sha256" in corpus.get("train", {})

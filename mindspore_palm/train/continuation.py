"""Resuming a run: which settings and text must stay the same, and what the user may ask for."""

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
from mindspore_palm.config import Settings, settings_of
from mindspore_palm.console import say
from mindspore_palm.data import Prepared
from mindspore_palm.data.files import printable
from mindspore_palm.data.prepare import Pinned
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import CHECKPOINTS, TOKENIZER
from mindspore_palm.settings import RENAMED
from mindspore_palm.train.base_model import has_moved
from mindspore_palm.train.profile_options import ProfileOptions, parse_profile
from mindspore_palm.train.state import fingerprint

MAY_CHANGE = (
    "model.preset",  # only a name; the sizes are compared
    "model.vocab_multiple",  # padding of the vocabulary; another mesh may need another one
    "data.prepared",
    "train.steps",
    "train.micro_batch",
    "train.eval_*",
    "train.output",
    "train.device",
    "train.peak_tflops",
    "train.trackers",
    "train.checkpoint_*",
    "train.keep_*",
    "train.spike*",
    "parallel.*",
)
"""Settings that may change when a run resumes; all others affect the weights."""
TEXT_SETTINGS = ("data.path", "data.mixture", "data.text_field", "data.tokenizer")
"""Settings that locate the text. If checkpoints store a hash of the content, that is compared instead of these."""
CONTENT = "data.content"  # name of the text itself for --accept; there is no such setting
BASE = "finetune.checkpoint"


@dataclass(frozen=True)
class StartOptions:
    """How a run starts, apart from its settings."""

    overwrite: bool = False
    """Delete an earlier run in the same folder."""
    accept: tuple[str, ...] = ()
    """Settings that may have changed although they affect the weights."""
    rewind_to: int | None = None
    """Go back to the newest checkpoint up to this step."""
    skip_batches: tuple[int, int] | None = None
    """Skip these batches: from, and up to. Batch k is what step k + 1 takes if none is skipped."""
    max_restarts: int = 0
    """How often the workers are restarted after one has died."""
    profile: ProfileOptions | None = None
    """Steps to profile."""

    @property
    def asked(self) -> str:
        """The rewind or skip that the user asked for, as arguments; empty if none."""
        back = f"--rewind-to {self.rewind_to}" if self.rewind_to is not None else ""
        skip = "--skip-batches {}:{}".format(*self.skip_batches) if self.skip_batches else ""
        return f"{back} {skip}".strip()


def parse_start_options(arguments: argparse.Namespace) -> StartOptions:
    """Start options from the arguments of the command.

    Raises:
        UserError: one of them is invalid; says what to write instead.
    """
    for name in arguments.accept:
        if name == CONTENT:
            continue
        section, _, key = name.partition(".")
        if new := RENAMED.get(name):
            raise UserError(f"--accept {name}: the setting is called {new.name} now; write --accept {new.name}")
        if key not in settings_of(section):
            raise UserError(f"--accept {name}: there is no such setting; give section.key, for example data.path")
    for name in ("rewind_to", "max_restarts"):
        if (getattr(arguments, name) or 0) < 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: must not be negative")
    batches = None
    if arguments.skip_batches is not None:
        match = re.fullmatch(r"(\d+):(\d+)", arguments.skip_batches)
        batches = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
        if batches[0] >= batches[1]:
            raise UserError(f"--skip-batches {arguments.skip_batches}: write FROM:TO, for example 200:400")
    asked = getattr(arguments, "profile", None)
    profile = parse_profile(asked) if asked is not None else None
    return StartOptions(
        arguments.overwrite, tuple(arguments.accept), arguments.rewind_to, batches, arguments.max_restarts, profile
    )


def may_change(name: str) -> bool:
    """Whether a setting may change when a run resumes."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in MAY_CHANGE)


def differences(before: Settings, now: Settings) -> dict[str, tuple[Any, Any]]:
    """Settings that differ and affect the weights, each with its value before and now."""
    old, new = (
        {
            f"{section}.{name}": value
            for section, group in settings.model_dump(mode="json").items()
            for name, value in group.items()
        }
        for settings in (before, now)
    )
    ends_at_last_step = now.optimizer.schedule == "cosine"
    return {
        name: (old[name], new[name])
        for name in old
        if old[name] != new[name] and (not may_change(name) or (name == "train.steps" and ends_at_last_step))
    }


def check_unchanged(before: Settings, now: Settings, start: StartOptions, folder: Path) -> None:
    """Checks that a run resumes with the settings that it started with.

    Args:
        before: settings of the run so far.
        now: its settings now.
        start: names the changes that are accepted.
        folder: of the run.

    Raises:
        UserError: lists the settings that differ, affect the weights and were not accepted.
    """
    changed = {name: pair for name, pair in differences(before, now).items() if name not in start.accept}
    if set(changed) & set(TEXT_SETTINGS) and _knows_content(Path(folder)):  # check_corpus compares the content itself
        changed = {name: pair for name, pair in changed.items() if name not in TEXT_SETTINGS}
    if BASE in changed and has_moved(Path(folder), now):
        del changed[BASE]
    if changed:
        lines = "".join(f"\n  {name} was {old} and is {new} now" for name, (old, new) in changed.items())
        force = " ".join(f"--accept {name}" for name in changed)
        raise UserError(
            f"{folder} was trained with other settings:{lines}\n"
            f"set them back, or force them with {force}; or start over in another train.output, or with --overwrite"
        )


def record_request(folder: Path, start: StartOptions, settings: Settings, prepared: Prepared) -> None:
    """Writes what ``--rewind-to`` and ``--skip-batches`` ask for to rewinds.json.

    That happens once: the same command again only resumes.

    Args:
        folder: of the run.
        start: the request.
        settings: of the run now.
        prepared: its text.

    Raises:
        UserError: there is no such checkpoint, or the batches come before it.
    """
    rewinds, steps = all_rewinds(folder), steps_in(folder / CHECKPOINTS)
    if any(rewind.asked == start.asked for rewind in rewinds):
        say(f"{start.asked}: was done before; resuming")
        return
    newest = current_checkpoint(folder, rewinds)
    at, to = max(steps, default=0), newest.step if newest else 0
    steps = [step for step in steps if step <= to]
    if start.rewind_to is not None:
        to = max((step for step in steps if step <= start.rewind_to), default=0)
        if to == 0 < start.rewind_to:
            available = ", ".join(map(str, reversed(steps)))
            raise UserError(
                f"--rewind-to {start.rewind_to}: no checkpoint is that old; there are checkpoints of steps {available}"
            )
    before = progress_of(newest) if newest else Progress()
    before.rewinds = rewinds
    corpus = newest.state.get("corpus", {}) if newest else {}, fingerprint(prepared)
    after = batches_of(settings, prepared, segments_from(to, before, settings, prepared, corpus), rewinds)
    skip = (0, 0)
    if start.skip_batches:
        argument = "--skip-batches {}:{}".format(*start.skip_batches)
        # batches are numbered as the run has taken them so far, and after that with the batch sizes of now
        segments = segments_from(newest.step if newest else 0, before, settings, prepared, corpus)
        numbering = batches_of(settings, prepared, segments, rewinds)
        try:
            first, last = (numbering.nominal_position(batch) for batch in start.skip_batches)
        except ValueError:
            first = last = -1
        if last < 0 or numbering.order_name != after.order_name:
            raise UserError(
                f"{argument}: the order of the text changed between these batches and step {to:,}, from which the run "
                "resumes, so that they are other text now; only go back with --rewind-to, and skip batches after that"
            )
        skip = (max(first, after.position(to)), last)
        if skip[0] >= skip[1]:
            raise UserError(
                f"{argument}: the run resumes from step {to:,}, and was trained on all of them before; go back further "
                "with --rewind-to"
            )
    decision = Rewind(f"by hand: {start.asked}", at, to, skip, start.asked, after.order_name)
    write_rewinds(folder, [*rewinds, decision])
    say(f"{start.asked}: resuming from step {to}")


def check_corpus(before: Mapping[str, Any], now: Mapping[str, Any], start: StartOptions, settings: Settings) -> None:
    """Checks that tokenizer and text have the content that the run started with, wherever they are stored.

    Checkpoints of earlier versions have no hash of the tokens; then the numbers of tokens are compared.

    Args:
        before: ``fingerprint`` when the checkpoint was written; empty if there is none.
        now: ``fingerprint`` of the text now.
        start: names the changes that are accepted.
        settings: name the text.

    Raises:
        UserError: tokenizer or text changed, and that was not accepted.
    """
    if not before:
        return
    other_tokenizer = before.get("tokenizer") != now.get("tokenizer")
    if other_tokenizer and "data.tokenizer" not in start.accept:
        raise UserError(
            f"data.tokenizer = {settings.data.tokenizer or '(trained on the text)'}: this is not the tokenizer that "
            "the run started with, and the weights only know its tokens; leave data.tokenizer as it was, or "
            "force this one with --accept data.tokenizer: the run resumes, and has to relearn what the tokens mean"
        )
    token_keys = ("tokens", "sha256", "gzip9_bits_per_byte") if other_tokenizer else ()
    changes = _changes(
        {
            name: values
            for name, values in text_differences(before, now).items()
            if name != "tokenizer" and name.rpartition(".")[2] not in token_keys
        }
    )
    if changes and CONTENT not in start.accept:
        raise UserError(
            f"{text_of(settings)}: its text changed since the run began "
            f"({'; '.join(changes)}); restore the old text, or train on the new one with --accept {CONTENT}: the run "
            "resumes at its step, with its tokenizer, and its next batches come from the new text, some of which it "
            "may have seen"
        )


def text_of(settings: Settings) -> str:
    """The setting that names the text of a run, with its value."""
    sources = ", ".join(printable(source.path) for source in settings.data.mixture)
    return f"data.mixture of {sources}" if sources else f"data.path = {printable(settings.data.path)}"


def _changes(differences: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Sentences for the differences of two fingerprints; a difference that follows from another one gets none."""
    sentences: list[str] = []
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
    """Tokenizer and split that the run in a folder keeps for its text; None if no checkpoint has them."""
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
    """Whether the newest checkpoint of a run has a hash of its text."""
    for step in steps_in(folder / CHECKPOINTS):
        with suppress(DamagedCheckpoint):
            return _has_hash(Checkpoint(folder / CHECKPOINTS / folder_name(step)).state.get("corpus", {}))
    return False


def _has_hash(corpus: Mapping[str, Any]) -> bool:
    return "sha256" in corpus.get("train", {})

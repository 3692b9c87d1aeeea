"""Writes checkpoints while training goes on: one consistent snapshot, one writer, old ones deleted."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from mindspore import Parameter

from mindspore_palm.checkpoint import format as checkpoint
from mindspore_palm.checkpoint.cleanup import delete_own_files, move_into
from mindspore_palm.checkpoint.format import CONFIG, STATE, TOKENIZER, Checkpoint
from mindspore_palm.config import Settings
from mindspore_palm.console import say
from mindspore_palm.files import TEMPORARY
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.parallel.votes import Votes
from mindspore_palm.parallel.weights import local_shard, placement_of
from mindspore_palm.settings import settings_to_yaml


class NotFinite(Exception):
    """State that is not finite: nothing to go back to, so no checkpoint."""


def check_finite(tensors: Mapping[str, np.ndarray]) -> None:
    """Sees that state holds no infinity and no NaN.

    Raises:
        NotFinite: names the first tensor that does.
    """
    for name, values in tensors.items():
        # the extremes carry every infinity and every NaN, without an array of the same size for the answer
        if values.size and values.dtype.kind == "f" and not np.isfinite([values.min(), values.max()]).all():
            raise NotFinite(f"{name} holds values that are not finite")


class CheckpointManager:
    """The checkpoints of a run, as one worker sees them.

    A checkpoint goes through two hands: every worker writes its slices, and when all have told each other that they
    did, the first one completes it. Both happen in a thread; what workers have to tell goes along with what they agree
    about after every step anyway (``tell``, ``hear``). A checkpoint that cannot be written is given up with a sentence,
    and training goes on.

    Args:
        folder: ``checkpoints/`` of the run.
        state: everything that a step changes.
        settings: of the run.
        tokenizer: its content.
        votes: of the workers.
        before: called, in the thread of the first worker, before a checkpoint takes its name: what belongs to the same
            steps goes to the disk first.
    """

    def __init__(
        self,
        folder: Path,
        state: Sequence[Parameter],
        settings: Settings,
        tokenizer: bytes,
        votes: Votes,
        before: Callable[[], None],
    ) -> None:
        self.folder, self.settings, self.votes, self.before = folder, settings, votes, before
        self.kinds = {p.name: str(p.dtype).lower() for p in state}
        self.slicings = checkpoint.slicings({p.name: placement_of(p) for p in state}) if this_rank() == 0 else {}
        self.own = [p for p in state if placement_of(p).is_first(this_rank())]
        self.small = {CONFIG: settings_to_yaml(settings).encode(), TOKENIZER: tokenizer}
        self.problem = ""
        """Why the last checkpoint could not be written; empty if it was."""
        self.worthless = False
        """Whether it was given up because state was not finite; all workers know it after ``finish``."""
        self._thread: threading.Thread | None = None
        self._step: int | None = None  # whose slices are being written, or wait for those of the others
        self._completing: int | None = None  # whose manifest the first worker is writing
        self._written = self._failed = False

    def save(self, step: int, state: dict, sound: int | None = None) -> None:
        """Begins a checkpoint of what the weights are now. All workers call this after the same step.

        Waits for the one before; and for this one, if it shall not be written in the background. State that is not
        finite is not written: the checkpoint is given up.

        Args:
            step: how many have been taken.
            state: of the run, as JSON.
            sound: the newest step whose weights are known to give a finite loss; the newest checkpoint up to it is not
                deleted for newer ones, which may be worthless. None takes all for sound.
        """
        self.finish()
        slices = {p.name: local_shard(p) for p in self.own}
        self._step, self.problem, self.worthless = step, "", False
        small = {**self.small, STATE: (json.dumps(state, indent=1) + "\n").encode()}
        temporary = self._temporary(step)

        def write() -> None:
            check_finite(slices)
            if slices:
                checkpoint.write_slices(temporary, this_rank(), slices)

        def complete() -> None:
            self._publish(temporary, step, small)
            self.prune(step, step if sound is None else sound)

        self._complete = complete
        self._start(write)
        if not self.settings.train.checkpoint_in_background:
            self.finish()

    def tell(self) -> tuple[bool, bool]:
        """What this worker tells the others after a step: whether its slices are written, and whether that failed."""
        return self._step is not None and self._written, self._step is not None and self._failed

    def hear(self, written: int, failed: int) -> None:
        """What the workers have told each other: when all are through, the first one completes the checkpoint."""
        if self._step is None or written + failed < current_layout().devices:
            return
        step, self._step = self._step, None
        if failed:
            self.problem = self.problem or "another worker could not write its slices; its log tells why"
            self._give_up(step)
        elif this_rank() == 0:
            self._completing = step
            self._start(self._complete)

    def look(self) -> None:
        """Says, once, that the last checkpoint could not be completed, if that is so."""
        if self._completing is None or self._thread.is_alive():
            return
        step, self._completing = self._completing, None
        if self._failed:
            self._give_up(step)

    def finish(self) -> bool:
        """Waits until no worker writes any more. All workers call this together.

        Returns:
            Whether the last checkpoint is on the disk; if not, ``problem`` says why.
        """
        self._join()
        self.hear(*self.votes(*self.tell()))
        self._join()
        self.look()
        failed, worthless = self.votes(bool(self.problem), self.worthless)
        self.worthless = bool(worthless)
        if failed and not self.problem:
            self.problem = "the first worker could not complete it; its log tells why"
        return not failed

    def newest(self) -> Checkpoint:
        """The newest checkpoint.

        Raises:
            DamagedCheckpoint: it is not whole.
        """
        return Checkpoint(self.folder / checkpoint.folder_name(checkpoint.steps_in(self.folder)[0]))

    def _temporary(self, step: int) -> Path:
        return self.folder / f"{checkpoint.folder_name(step)}{TEMPORARY}"

    def _start(self, work: Callable[[], None]) -> None:
        """Has ``work`` done in a thread; there is never more than one."""
        self._join()
        self._written = self._failed = False

        def run() -> None:
            try:
                work()
                self._written = True
            except NotFinite as error:
                self.problem, self.worthless, self._failed = str(error), True, True
            except Exception as error:  # whatever it is: the run goes on without this checkpoint
                where = f" ({error.filename})" if getattr(error, "filename", None) else ""
                self.problem = f"{getattr(error, 'strerror', None) or repr(error)}{where}"
                self._failed = True
                if this_rank() != 0:  # the first worker says what this means for the run
                    print(f"worker {this_rank()}: {self.problem}", flush=True)

        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def _join(self) -> None:
        if self._thread:
            self._thread.join()

    def _publish(self, temporary: Path, step: int, small: dict[str, bytes]) -> None:
        self.before()
        checkpoint.publish(temporary, self.slicings, self.kinds, step, small)

    def prune(self, step: int, sound: int) -> None:
        """Deletes old checkpoints, but for the newest sound one and those that are kept by the settings.

        Args:
            step: how many the run has taken; what has a later one is not its own.
            sound: as for ``save``.
        """
        train = self.settings.train
        own = [there for there in checkpoint.steps_in(self.folder) if there <= step]
        newest_sound = max((there for there in own if there <= sound), default=None)
        for old in own[train.keep_last :]:
            if old != newest_sound and not (train.keep_every and old % train.keep_every == 0):
                with suppress(OSError):  # an old one that stays does no harm
                    checkpoint.discard(self.folder / checkpoint.folder_name(old))

    def _give_up(self, step: int) -> None:
        if this_rank() != 0:
            return
        with suppress(OSError):  # cleared at the next start
            delete_own_files(self._temporary(step), checkpoint.OWN_FILES)
        there = checkpoint.steps_in(self.folder)
        last = f"the last one is of step {there[0]}" if there else "there is none yet"
        say(f"the checkpoint of step {step} could not be written: {self.problem}; training goes on, {last}")


def clear(folder: Path) -> None:
    """Deletes what was never completed, or never deleted to its end, in ``checkpoints/``.

    Raises:
        OSError: a file could not be deleted.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        found = checkpoint.ALL.fullmatch(path.name)
        if (
            not found
            or not found.group("ending")
            or not path.is_dir()
            or path.is_symlink()
            or delete_own_files(path, checkpoint.OWN_FILES)
        ):
            continue
        if found.group("ending") == checkpoint.GONE:  # what others put there
            move_into(path, folder / found.group("name"))

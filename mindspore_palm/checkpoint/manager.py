"""Writes checkpoints while training continues: a consistent snapshot, one writer thread, old checkpoints deleted."""

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
from mindspore_palm.checkpoint.format import Checkpoint
from mindspore_palm.config import Settings
from mindspore_palm.console import say
from mindspore_palm.file_names import CONFIG, GONE, STATE, TEMPORARY, TOKENIZER
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.parallel.votes import Votes
from mindspore_palm.parallel.weights import local_shard, placement_of
from mindspore_palm.settings import settings_to_yaml


class NotFinite(Exception):
    """The state is not finite: training could not resume from it, so it is not saved."""


def check_finite(tensors: Mapping[str, np.ndarray]) -> None:
    """Checks that state holds no infinity and no NaN.

    Raises:
        NotFinite: names the first tensor that does.
    """
    for name, values in tensors.items():
        # min and max propagate every infinity and NaN, without a temporary array of the same size
        if values.size and values.dtype.kind == "f" and not np.isfinite([values.min(), values.max()]).all():
            raise NotFinite(f"{name} holds values that are not finite")


class CheckpointManager:
    """Saves the checkpoints of a run; every worker has one.

    A checkpoint is written in two phases, each in a thread: every worker writes its shards, and once all have, the
    first worker completes it. Workers learn how far the others are by the one vote after each step (``poll``), which
    also carries requests to stop. A checkpoint that cannot be written is given up with a message, and training
    continues.

    Args:
        folder: ``checkpoints/`` of the run.
        state: everything that a step changes.
        settings: of the run.
        tokenizer: its content.
        votes: of the workers.
        before_publish: called in the first worker's thread before a checkpoint gets its final name, to write other
            records of the same steps to disk first.
    """

    def __init__(
        self,
        folder: Path,
        state: Sequence[Parameter],
        settings: Settings,
        tokenizer: bytes,
        votes: Votes,
        before_publish: Callable[[], object],
    ) -> None:
        self.folder, self.settings, self.votes, self.before_publish = folder, settings, votes, before_publish
        self.dtypes = {p.name: str(p.dtype).lower() for p in state}
        self.shardings = checkpoint.shardings({p.name: placement_of(p) for p in state}) if this_rank() == 0 else {}
        self.own = [p for p in state if placement_of(p).is_first(this_rank())]
        self.small_files = {CONFIG: settings_to_yaml(settings).encode(), TOKENIZER: tokenizer}
        self.problem = ""
        """Why the last checkpoint could not be written; empty if it could."""
        self.state_not_finite = False
        """Whether it was given up because the state was not finite; on all workers after ``finish``."""
        self._thread: threading.Thread | None = None
        self._step: int | None = None  # of the pending checkpoint: shards are being written, here or by other workers
        self._completing: int | None = None  # of the checkpoint whose manifest the first worker is writing
        self._written = self._failed = False

    def save(self, step: int, state: dict, sound: int | None = None) -> None:
        """Starts a checkpoint of the current state. All workers call this after the same step.

        Waits for the previous checkpoint, and for this one as well unless checkpoints are written in the background. If
        the state is not finite, the checkpoint is given up.

        Args:
            step: steps taken.
            state: content of state.json.
            sound: newest step whose weights are known to give a finite loss. The newest checkpoint up to it is kept,
                however many are newer, as those may be useless. None treats all checkpoints as sound.
        """
        self.finish()
        shards = {p.name: local_shard(p) for p in self.own}
        self._step, self.problem, self.state_not_finite = step, "", False
        small_files = {**self.small_files, STATE: (json.dumps(state, indent=1) + "\n").encode()}
        temporary = self._temporary(step)

        def write() -> None:
            check_finite(shards)
            if shards:
                checkpoint.write_shards(temporary, this_rank(), shards)

        def complete() -> None:
            self._publish(temporary, step, small_files)
            self.prune(step, step if sound is None else sound)

        self._complete = complete
        self._start(write)
        if not self.settings.train.checkpoint_in_background:
            self.finish()

    def poll(self, stop: bool = False) -> int:
        """Votes with all workers, and advances the pending checkpoint. All workers call this after every step.

        This is the one small all-reduce of a step. When all workers have written their shards, the first one completes
        the checkpoint; if it could not, that is logged once.

        Args:
            stop: whether this worker was asked to stop.

        Returns:
            How many workers were asked to stop.
        """
        stopping, written, failed = self.votes(stop, *self._phase())
        self._advance(written, failed)
        self._check_completion()
        return stopping

    def _phase(self) -> tuple[bool, bool]:
        """Whether this worker has written its shards of the pending checkpoint, and whether that failed."""
        pending = self._step is not None
        return pending and self._written, pending and self._failed

    def _advance(self, written: int, failed: int) -> None:
        """Has the first worker complete the checkpoint once all workers have written, or give it up if one failed."""
        if self._step is None or written + failed < current_layout().devices:
            return
        step, self._step = self._step, None
        if failed:
            self.problem = self.problem or "another worker could not write its shards; see its log"
            self._give_up(step)
        elif this_rank() == 0:
            self._completing = step
            self._start(self._complete)

    def _check_completion(self) -> None:
        """Gives the last checkpoint up, once, if the first worker could not complete it."""
        if self._completing is None or (self._thread and self._thread.is_alive()):
            return
        step, self._completing = self._completing, None
        if self._failed:
            self._give_up(step)

    def finish(self) -> bool:
        """Waits until no worker is writing. All workers call this together.

        Returns:
            Whether the last checkpoint is on disk; if not, ``problem`` is the reason.
        """
        self._join()
        self.poll()
        self._join()
        self._check_completion()
        failed, not_finite = self.votes(bool(self.problem), self.state_not_finite)
        self.state_not_finite = bool(not_finite)
        if failed and not self.problem:
            self.problem = "the first worker could not complete it; see its log"
        return not failed

    def newest(self) -> Checkpoint:
        """The newest checkpoint.

        Raises:
            DamagedCheckpoint: it is damaged.
        """
        return Checkpoint(self.folder / checkpoint.folder_name(checkpoint.steps_in(self.folder)[0]))

    def _temporary(self, step: int) -> Path:
        return self.folder / f"{checkpoint.folder_name(step)}{TEMPORARY}"

    def _start(self, work: Callable[[], None]) -> None:
        """Runs ``work`` in a thread; there is never more than one."""
        self._join()
        self._written = self._failed = False

        def run() -> None:
            try:
                work()
                self._written = True
            except NotFinite as error:
                self.problem, self.state_not_finite, self._failed = str(error), True, True
            except Exception as error:  # of any kind: the run continues without this checkpoint
                where = f" ({name})" if (name := getattr(error, "filename", None)) else ""
                self.problem = f"{getattr(error, 'strerror', None) or repr(error)}{where}"
                self._failed = True
                if this_rank() != 0:  # the first worker logs what this means for the run
                    print(f"worker {this_rank()}: {self.problem}", flush=True)

        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def _join(self) -> None:
        if self._thread:
            self._thread.join()

    def _publish(self, temporary: Path, step: int, small_files: dict[str, bytes]) -> None:
        self.before_publish()
        checkpoint.publish(temporary, self.shardings, self.dtypes, step, small_files)

    def prune(self, step: int, sound: int) -> None:
        """Deletes old checkpoints, except the newest sound one and those that the settings keep.

        Args:
            step: steps taken; checkpoints of later steps are not of this run, and stay.
            sound: as for ``save``.
        """
        train = self.settings.train
        saved = [at for at in checkpoint.steps_in(self.folder) if at <= step]
        newest_sound = max((at for at in saved if at <= sound), default=None)
        for old in saved[train.keep_last :]:
            if old != newest_sound and not (train.keep_every and old % train.keep_every == 0):
                with suppress(OSError):  # an old checkpoint that stays does no harm
                    checkpoint.discard(self.folder / checkpoint.folder_name(old))

    def _give_up(self, step: int) -> None:
        if this_rank() != 0:
            return
        with suppress(OSError):  # deleted at the next start
            delete_own_files(self._temporary(step), checkpoint.CHECKPOINT_FILES)
        saved = checkpoint.steps_in(self.folder)
        last = f"the last one is of step {saved[0]}" if saved else "there is none yet"
        say(f"the checkpoint of step {step} could not be written: {self.problem}; training continues, {last}")


def delete_incomplete(folder: Path) -> None:
    """Deletes incomplete checkpoints in ``checkpoints/``: never completed, or not completely deleted.

    Raises:
        OSError: a file could not be deleted.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = checkpoint.CHECKPOINT_FOLDER.fullmatch(path.name)
        if (
            not match
            or not match.group("ending")
            or not path.is_dir()
            or path.is_symlink()
            or delete_own_files(path, checkpoint.CHECKPOINT_FILES)
        ):
            continue
        if match.group("ending") == GONE:  # holds users' own files
            move_into(path, folder / match.group("name"))

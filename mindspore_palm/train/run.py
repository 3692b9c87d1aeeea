"""A run while it trains: the parts it works with, its evaluation and its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindspore_palm.checkpoint.manager import CheckpointManager
from mindspore_palm.checkpoint.progress import Progress
from mindspore_palm.config import Settings
from mindspore_palm.data import Batches, Prepared
from mindspore_palm.parallel.votes import Votes
from mindspore_palm.train.evaluate import Evaluation, Evaluator
from mindspore_palm.train.log.metrics import last_losses
from mindspore_palm.train.log.recorder import UNWRITTEN, Recorder
from mindspore_palm.train.state import state_of
from mindspore_palm.train.step import TrainStep
from mindspore_palm.train.unrolled import UnrolledStep
from mindspore_palm.train.validation import validate


@dataclass
class Run:
    """Parts of a run; rebuilt each time that the run goes back to a checkpoint."""

    settings: Settings
    folder: Path
    prepared: Prepared
    batches: Batches
    progress: Progress
    step: TrainStep | UnrolledStep
    evaluator: Evaluator
    recorder: Recorder | None
    """None on all workers but the first."""
    manager: CheckpointManager
    votes: Votes
    peak: float
    """FLOP/s of all devices."""
    final_evaluation: Evaluation | None = None
    """On all held-out text, after the last step."""

    def evaluate(self) -> Evaluation | None:
        """Held-out loss, after the last step on all held-out text; None if a worker was asked to stop."""
        train = self.settings.train
        is_last = self.progress.step == train.steps
        limit = None if is_last else train.eval_sequences
        evaluation = validate(self.evaluator, self.settings, self.prepared, self.votes, limit)
        self.final_evaluation = evaluation if is_last else None
        return evaluation

    def save(self) -> None:
        """Starts writing a checkpoint of the last step."""
        state = state_of(self.settings, self.prepared, self.progress, self.batches)
        if self.recorder:
            state["losses"] = last_losses(self.recorder.rows)
            if unwritten := self.recorder.unwritten():
                state[UNWRITTEN] = unwritten
        self.manager.save(self.progress.step, state, self.progress.sound)

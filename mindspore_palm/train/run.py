"""A run while it trains: what it works with, its evaluation and its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindspore_palm.checkpoint.manager import CheckpointManager
from mindspore_palm.checkpoint.progress import Progress
from mindspore_palm.config import Settings
from mindspore_palm.data import Batches, Prepared
from mindspore_palm.parallel.votes import Votes
from mindspore_palm.train.evaluate import Evaluation, Evaluator
from mindspore_palm.train.held_out import evaluate
from mindspore_palm.train.log.metrics import UNWRITTEN, Records, last_losses
from mindspore_palm.train.state import state_of
from mindspore_palm.train.step import TrainStep


@dataclass
class Run:
    """What a run works with; built anew each time that it goes back to a checkpoint."""

    settings: Settings
    folder: Path
    prepared: Prepared
    batches: Batches
    progress: Progress
    step: TrainStep
    evaluator: Evaluator
    records: Records | None
    """Kept by the first worker; None on the others."""
    manager: CheckpointManager
    votes: Votes
    peak: float
    """FLOP/s of all devices."""
    result: Evaluation | None = None
    """Of all held-out text, after the last step."""

    def evaluate(self) -> Evaluation | None:
        """Held-out loss; of all held-out text after the last step. None if the run shall stop."""
        train = self.settings.train
        last = self.progress.step == train.steps
        found = evaluate(
            self.evaluator, self.settings, self.prepared, self.votes, None if last else train.eval_sequences
        )
        self.result = found if last else None
        return found

    def save(self) -> None:
        """Begins a checkpoint of the last step."""
        state = state_of(self.settings, self.prepared, self.progress, self.batches)
        if self.records:
            state["losses"] = last_losses(self.records.rows)
            if unwritten := self.records.unwritten():
                state[UNWRITTEN] = unwritten
        self.manager.save(self.progress.step, state, self.progress.sound)

"""The held-out loss while a run trains: when it is measured, on what, and left at once when the run shall stop."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mindspore_palm.config import Settings, TrainConfig
from mindspore_palm.data import Prepared, validation_batches
from mindspore_palm.launch import stop
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.votes import Votes
from mindspore_palm.train.evaluate import Evaluation, Evaluator


def is_due(step: int, train: TrainConfig) -> bool:
    """Whether the held-out loss is measured after a step."""
    return step == train.steps or bool(step and train.eval_every and step % train.eval_every == 0)


def held_out(
    settings: Settings, prepared: Prepared, limit: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of held-out text, as many sequences each as a forward pass of training takes.

    Of a ramp, the first size that can be sharded: the small ones may be over before a run comes to its mesh.
    """
    sizes = [settings.train.micro_batch_of(size) for _, size in settings.train.batch_ramp()]
    shards = current_layout().shards("batch")
    batch = next((size for size in sizes if size % shards == 0), sizes[0])
    return validation_batches(prepared.validation, settings.data.seq_len, prepared.tokenizer.eod, batch, limit)


def evaluate(
    evaluator: Evaluator, settings: Settings, prepared: Prepared, votes: Votes, limit: int | None = None
) -> Evaluation | None:
    """Held-out loss; None if a worker was asked to stop: all leave it together, between two batches.

    Args:
        evaluator: of the network.
        settings: of the run.
        prepared: its text.
        votes: of the workers.
        limit: sequences at most; None for all.
    """
    stopped = False

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal stopped
        for batch in held_out(settings, prepared, limit):
            if stopped := any(votes(stop.requested())):
                return
            yield batch

    result = evaluator(batches())
    return None if stopped else result

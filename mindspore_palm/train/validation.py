"""Held-out loss during training: its batches, and an evaluation that ends early when a worker was asked to stop."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mindspore_palm.config import Settings
from mindspore_palm.data import Prepared, validation_batches
from mindspore_palm.launch import stop
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.votes import Votes
from mindspore_palm.train.evaluate import Evaluation, Evaluator


def held_out_batches(
    settings: Settings, prepared: Prepared, limit: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of held-out text, each with as many sequences as a micro-batch of training; in a pipeline, as a batch.

    With a batch size ramp, that is the first size that the mesh can shard: a run may reach its mesh only after the
    smaller sizes.

    Args:
        settings: of the run.
        prepared: its text.
        limit: sequences at most; None for all.

    Raises:
        UserError: there is too little text.
    """
    ramp, piped = settings.train.batch_ramp(), current_layout().mesh.stages > 1
    sizes = [size if piped else settings.train.micro_batch_of(size) for _, size in ramp]
    shards = current_layout().shards("batch")
    batch = next((size for size in sizes if size % shards == 0), sizes[0])
    return validation_batches(prepared.validation, settings.data.seq_len, prepared.tokenizer.eod, batch, limit)


def validate(
    evaluator: Evaluator, settings: Settings, prepared: Prepared, votes: Votes, limit: int | None = None
) -> Evaluation | None:
    """Held-out loss; None if a worker was asked to stop: all workers then leave together, between two batches.

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
        for batch in held_out_batches(settings, prepared, limit):
            if stopped := any(votes(stop.requested())):
                return
            yield batch

    result = evaluator(batches())
    return None if stopped else result

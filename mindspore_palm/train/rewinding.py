"""Rewinds after a loss spike: decided by all workers together, and written to disk before anything else happens."""

from __future__ import annotations

from mindspore_palm.checkpoint.format import steps_in
from mindspore_palm.checkpoint.progress import Rewind, write_rewinds
from mindspore_palm.checkpoint.timeline import batches_of, segments_from
from mindspore_palm.console import say
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import CHECKPOINTS
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.train.run import Run
from mindspore_palm.train.spikes import Spike, batches_to_skip, count_tries, rewind_target


def decide_rewind(run: Run, spike: Spike) -> None:
    """Decides how far to go back for a spike and which batches to skip, and writes the decision to rewinds.json.

    All workers call this together. From here on the decision holds, even if the run is killed.

    Raises:
        UserError: the same spike came back too often.
    """
    train, rewinds = run.settings.train, run.progress.rewinds
    run.manager.finish()
    tries = count_tries(rewinds, spike, train)
    if tries >= train.spike_tries:
        raise UserError(
            f"{spike}, after going back {tries} times for it; lower optimizer.learning_rate, skip other batches with "
            "--rewind-to and --skip-batches, or allow more tries with train.spike_tries"
        )
    checkpoints = steps_in(run.folder / CHECKPOINTS)
    to = run.votes.broadcast(rewind_target(checkpoints, spike, train.spike_look_back))
    batches = batches_to_skip(train, tries, spike.last - to)
    segments = segments_from(to, run.progress, run.settings, run.prepared)
    after = batches_of(run.settings, run.prepared, segments, rewinds)
    end = after.position(to + batches)
    if after.order_name == run.batches.order_name:  # batch sizes may change on the way: skip at least the text it saw
        end = max(end, run.batches.position(spike.last + train.spike_look_back))
    skip = after.position(to), end
    if this_rank() == 0:
        write_rewinds(run.folder, [*rewinds, Rewind(str(spike), spike.last, to, skip, order=after.order_name)])
    say(f"{spike}; going back to step {to:,} and skipping {batches:,} batches (try {tries + 1} of {train.spike_tries})")
    run.votes()

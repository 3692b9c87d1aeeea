"""Going back for a spike: decided by all workers together, and written down before anything else happens."""

from __future__ import annotations

from mindspore_palm.checkpoint.format import steps_in
from mindspore_palm.checkpoint.progress import Rewind, write_rewinds
from mindspore_palm.checkpoint.timeline import batches_of, segments_from
from mindspore_palm.console import say
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import CHECKPOINTS
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.train.run import Run
from mindspore_palm.train.spikes import Spike, batches_to_skip, step_to_go_back_to, tries


def go_back(run: Run, spike: Spike) -> None:
    """Decides, for all workers, how far to go back and what to leave out; from here on the decision holds.

    Raises:
        UserError: the same spike came back too often.
    """
    train, rewinds = run.settings.train, run.progress.rewinds
    run.manager.finish()
    count = tries(rewinds, spike, train)
    if count >= train.spike_tries:
        raise UserError(
            f"{spike}, after going back {count} times for it; lower optimizer.learning_rate, leave out other batches "
            "by --rewind-to and --skip-batches, or let it try more often by train.spike_tries"
        )
    there = steps_in(run.folder / CHECKPOINTS)
    to = run.votes.broadcast(step_to_go_back_to(there, spike, train.spike_look_back))
    batches = batches_to_skip(train, count, spike.last - to)
    segments = segments_from(to, run.progress, run.settings, run.prepared)
    after = batches_of(run.settings, run.prepared, segments, rewinds)
    end = after.position(to + batches)
    if after.order_name == run.batches.order_name:  # with other sizes on the way, as far as its text went
        end = max(end, run.batches.position(spike.last + train.spike_look_back))
    skip = after.position(to), end
    if this_rank() == 0:
        write_rewinds(run.folder, [*rewinds, Rewind(str(spike), spike.last, to, skip, order=after.order_name)])
    nth = f"try {count + 1} of {train.spike_tries}"
    say(f"{spike}; going back to step {to:,} and leaving out {batches:,} batches ({nth})")
    run.votes()

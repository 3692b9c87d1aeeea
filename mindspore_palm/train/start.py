"""The start of a run: its settings checked for the machine, and its parts built from the newest checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from mindspore_palm.checkpoint.format import steps_in
from mindspore_palm.checkpoint.manager import CheckpointManager
from mindspore_palm.checkpoint.restore import discard_after, restore
from mindspore_palm.checkpoint.timeline import batches_of, describe_change, resume_step, segments_from
from mindspore_palm.config import Settings
from mindspore_palm.console import say
from mindspore_palm.data import Prepared
from mindspore_palm.file_names import CHECKPOINTS, METRICS
from mindspore_palm.files import check_links
from mindspore_palm.model.weights import placements
from mindspore_palm.parallel.axes import Layout, current_layout
from mindspore_palm.parallel.check import check_layout, layout_of
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.parallel.votes import Votes
from mindspore_palm.train.base_model import check_base
from mindspore_palm.train.build import build_step
from mindspore_palm.train.continuation import StartOptions, check_corpus, may_change
from mindspore_palm.train.evaluate import Evaluator
from mindspore_palm.train.log.recorder import UNWRITTEN, Recorder
from mindspore_palm.train.log.trackers import Trackers, check_trackers
from mindspore_palm.train.profile_options import check_profile
from mindspore_palm.train.run import Run
from mindspore_palm.train.run_folder import check_paths, set_foreign_metrics_aside
from mindspore_palm.train.state import fingerprint
from mindspore_palm.train.unrolled import UnrolledStep


def check_settings(settings: Settings, device: str, start: StartOptions | None = None) -> Layout:
    """Checks that all sizes still to come fit the mesh, and that paths can be used; returns the layout.

    For a run that has checkpoints, the error only suggests settings that may change.

    Args:
        settings: all of them.
        device: CPU, GPU or Ascend.
        start: how the run starts.

    Raises:
        UserError: names setting, sizes and what to change; a path that leads nowhere; or a package that is missing.
    """
    folder = Path(settings.train.output)
    check_paths(folder)
    check_links(Path(settings.data.prepared), "data.prepared")
    check_trackers(settings)
    layout = layout_of(settings, device)
    start = start or StartOptions()
    resumes = not start.overwrite and bool(steps_in(folder / CHECKPOINTS))
    step = resume_step(folder, start.overwrite, start.rewind_to)
    if start.profile:
        check_profile(start.profile, step, settings.train.steps, device)
    check_layout(settings, layout, placements, step, may_change=may_change if resumes else lambda _: True)
    return layout


def build_run(
    settings: Settings, start: StartOptions, folder: Path, prepared: Prepared, votes: Votes, peak: float
) -> Run:
    """Builds network, training step and records, restored from the newest checkpoint.

    A compiled network keeps its own copies of the weights, which MindSpore does not update (MS-22). To go back to a
    checkpoint, the run is therefore built again.

    Args:
        settings: of the run.
        start: names the changes that are accepted.
        folder: of the run.
        prepared: its text.
        votes: of the workers.
        peak: FLOP/s of all devices.

    Raises:
        UserError: no checkpoint can be read, or text, base model or sizes do not fit the run.
    """
    palm, step = build_step(settings)
    progress, state = restore(folder, step.state, votes)
    corpus = state.get("corpus", {}), fingerprint(prepared)
    check_corpus(*corpus, start, settings)
    check_layout(settings, current_layout(), placements, progress.step, may_change)
    before, progress.segments = progress.segments, segments_from(progress.step, progress, settings, prepared, corpus)
    batches = batches_of(settings, prepared, progress.segments, progress.rewinds)
    recorder = None
    if this_rank() == 0:
        check_base(settings, progress)
        discard_after(folder, progress.step)
        set_foreign_metrics_aside(folder, state.get("losses", ()))
        marks = [(rewind.to, f"from step {rewind.at:,} back to {rewind.to:,}") for rewind in progress.rewinds]
        gzip9 = prepared.meta["gzip9_bits_per_byte"]
        trackers = Trackers(settings, folder, progress.step, len(progress.rewinds)).all  # before rows are removed
        recorder = Recorder(folder, gzip9, marks, progress.step, state.get(UNWRITTEN, []), trackers)
    if progress.step:
        say(f"resuming from step {progress.step}")
        if recorder and len(recorder.rows) < progress.step:
            say(f"{METRICS} lacks rows before that step: somebody has removed them")
    if before and progress.segments != before:
        say(describe_change(progress.segments, batches))
    sync = recorder.sync if recorder else nullcontext
    manager = CheckpointManager(
        folder / CHECKPOINTS, step.state, settings, prepared.tokenizer.serialized, votes, before_publish=sync
    )
    nats = step.nats if isinstance(step, UnrolledStep) and current_layout().mesh.stages > 1 else None
    evaluator = Evaluator(palm, prepared.tokenizer.piece_bytes, nats)
    return Run(settings, folder, prepared, batches, progress, step, evaluator, recorder, manager, votes, peak)

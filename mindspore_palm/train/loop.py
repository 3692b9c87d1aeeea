"""The training loop, top to bottom."""

from __future__ import annotations

import gc
import math
import os
import time
from contextlib import nullcontext
from pathlib import Path

from mindspore_palm.checkpoint.adapter import ADAPTER, save_adapter
from mindspore_palm.checkpoint.format import steps_in
from mindspore_palm.checkpoint.manager import CheckpointManager, clear
from mindspore_palm.checkpoint.model_folder import export
from mindspore_palm.checkpoint.progress import Progress
from mindspore_palm.checkpoint.restore import discard_after, restore
from mindspore_palm.checkpoint.timeline import CHECKPOINTS, ahead_of, batches_of, next_step, segments_from, what_changed
from mindspore_palm.config import Settings
from mindspore_palm.console import Bar, say
from mindspore_palm.cost.memory import check_memory
from mindspore_palm.data import Prepared
from mindspore_palm.errors import Interrupted, UserError, same_command
from mindspore_palm.files import check_links
from mindspore_palm.launch import stop
from mindspore_palm.launch.supervisor import LAUNCHER
from mindspore_palm.model.weights import placements
from mindspore_palm.parallel.axes import Layout, current_layout, layout
from mindspore_palm.parallel.check import check_layout, layout_of
from mindspore_palm.parallel.context import (
    Device,
    join_workers,
    lost_workers,
    open_device,
    out_of_memory,
    this_rank,
)
from mindspore_palm.parallel.votes import Votes
from mindspore_palm.train.base_model import check_base
from mindspore_palm.train.build import build_step
from mindspore_palm.train.continuation import StartOptions, check_corpus, decide_by_hand, is_free
from mindspore_palm.train.divergence import advice, check_not_lost
from mindspore_palm.train.evaluate import Evaluation, Evaluator
from mindspore_palm.train.finetune import dropout_mask, open_data
from mindspore_palm.train.held_out import held_out, is_due
from mindspore_palm.train.log.banner import banner
from mindspore_palm.train.log.metrics import UNWRITTEN, Records, Row
from mindspore_palm.train.log.peak import measure_peak
from mindspore_palm.train.rewinding import go_back
from mindspore_palm.train.run import Run
from mindspore_palm.train.run_folder import (
    RunFolderState,
    check_places,
    check_run_folder,
    finished,
    only_run,
    set_other_rows_aside,
    start_run_folder,
)
from mindspore_palm.train.spikes import Spike, watch
from mindspore_palm.train.state import fingerprint
from mindspore_palm.train.step import StepResult

DRAW_EVERY = 60.0  # seconds between two drawings of loss.png


def train(settings: Settings, start: StartOptions | None = None) -> Evaluation | None:
    """Trains a PaLM from text to a folder that opens alone, or goes on with it; returns its held-out loss.

    On several devices, all workers call this; rank 0 alone speaks, and writes all but the slices of the others.

    Args:
        settings: all of them.
        start: whether an earlier run may be deleted, gone on with in spite of changes, or taken back.

    Returns:
        None if the run was finished before.

    Raises:
        UserError: something about settings, text or machine must be mended; nothing was lost but steps.
        Interrupted: the user stopped the run; says where it goes on.
    """
    start = start or StartOptions()
    device = open_device(settings.train.device)
    place = check_settings(settings, device.name, start)
    memory = check_memory(settings, place)
    join_workers(place.devices, device.name)
    folder = Path(settings.train.output)
    locks = this_rank() == 0 and LAUNCHER not in os.environ  # a launcher holds the lock from its look to its end
    alone = only_run(folder) if locks else nullcontext()
    with layout(place), lost_workers(), out_of_memory(), alone:
        return _train(settings, start, device, memory, folder)


def check_settings(settings: Settings, kind: str, start: StartOptions | None = None) -> Layout:
    """The layout of a run on a kind of device, if all sizes that are still to come fit it.

    A run that has begun is not advised to become another one.

    Raises:
        UserError: names setting, sizes and what to change; or a path that leads nowhere.
    """
    folder = Path(settings.train.output)
    check_places(folder)
    check_links(Path(settings.data.prepared), "data.prepared")
    place = layout_of(settings, kind)
    start = start or StartOptions()
    begun = not start.overwrite and bool(steps_in(folder / CHECKPOINTS))
    step = next_step(folder, start.overwrite, start.rewind_to)
    check_layout(settings, place, placements, step, may_change=is_free if begun else lambda _: True)
    return place


def _train(
    settings: Settings, start: StartOptions, device: Device, memory: dict[str, int], folder: Path
) -> Evaluation | None:
    lead, votes = this_rank() == 0, Votes()
    found = RunFolderState(votes.broadcast(check_run_folder(settings, start) if lead else 0))
    if found is RunFolderState.FINISHED:
        say(finished(settings))
        return None
    prepared = open_data(settings, start.overwrite)
    step = votes.broadcast(next_step(folder, start.overwrite, start.rewind_to) if lead else 0)
    batches_of(ahead_of(settings, step), prepared)
    list(held_out(settings, prepared, limit=1))  # too little text is found before anything is computed
    place = current_layout()
    peak = (settings.train.peak_tflops * 1e12 or measure_peak(device.name, place.compute_dtype)) * place.devices
    say(banner(settings, device, prepared, memory, peak))
    if found is RunFolderState.BEGUN:
        say(f"an earlier run in {folder} ended before its first checkpoint; beginning anew")
    if lead:
        start_run_folder(folder, settings, found)
        clear(folder / CHECKPOINTS)
        if start.asked:
            decide_by_hand(folder, start, settings, prepared)
    votes()
    stop.begun()
    stop.on_leaving(lambda: f"stopped at once; {where_it_resumes(folder)}")
    with stop.training():
        try:
            return train_and_go_back(settings, start, folder, prepared, votes, peak)
        except KeyboardInterrupt:  # in a process that is not the command's own
            raise Interrupted(f"stopped at once; {where_it_resumes(folder)}") from None


def train_and_go_back(
    settings: Settings, start: StartOptions, folder: Path, prepared: Prepared, votes: Votes, peak: float
) -> Evaluation:
    """Trains to the end, going back to a checkpoint as often as the loss spikes.

    Raises:
        UserError, Interrupted: as ``train``.
    """
    while True:
        run = assemble(settings, start, folder, prepared, votes, peak)
        with run.records or nullcontext():
            spike = run_steps(run)
            if spike is None:
                return finish(run)
        go_back(run, spike)
        if any(votes(stop.wished())):
            raise Interrupted(f"stopped after going back; {where_it_resumes(folder)}")
        del run
        gc.collect()  # its network makes room for the next one


def assemble(
    settings: Settings,
    start: StartOptions,
    folder: Path,
    prepared: Prepared,
    votes: Votes,
    peak: float,
) -> Run:
    """Network, newest checkpoint and records: the run as it stands.

    A network that has run keeps its own copies of the weights, which MindSpore does not give new values: so going back
    is starting again (MS-22).
    """
    lead = this_rank() == 0
    palm, step = build_step(settings)
    progress, before = restore(folder, step.state, votes)
    corpus = before.get("corpus", {}), fingerprint(prepared)
    check_corpus(*corpus, start, settings)
    check_layout(settings, current_layout(), placements, progress.step, is_free)
    known, progress.segments = progress.segments, segments_from(progress.step, progress, settings, prepared, corpus)
    batches = batches_of(settings, prepared, progress.segments, progress.rewinds)
    records = None
    if lead:
        check_base(settings, progress)
        discard_after(folder, progress.step)
        set_other_rows_aside(folder, before.get("losses", ()))
        marks = [(rewind.to, f"from step {rewind.at:,} back to {rewind.to:,}") for rewind in progress.rewinds]
        gzip9 = prepared.meta["gzip9_bits_per_byte"]
        records = Records(folder, gzip9, marks, until=progress.step, unwritten=before.get(UNWRITTEN, []))
    if progress.step:
        say(f"going on from step {progress.step}")
        if records and len(records.rows) < progress.step:
            say("metrics.csv lacks rows before that step: somebody has taken them out")
    if known and progress.segments != known:
        say(what_changed(progress.segments, batches))
    tokenizer = prepared.tokenizer.serialized
    manager = CheckpointManager(
        folder / CHECKPOINTS, step.state, settings, tokenizer, votes, records.sync if records else nullcontext
    )
    evaluator = Evaluator(palm, prepared.tokenizer.piece_bytes)
    return Run(settings, folder, prepared, batches, progress, step, evaluator, records, manager, votes, peak)


def run_steps(run: Run) -> Spike | None:
    """All steps, until the last, until a worker was asked to stop, or until the loss has spiked: the spike then."""
    settings, train, progress, records = run.settings, run.settings.train, run.progress, run.records
    length, recompute, drawn = settings.data.seq_len, settings.parallel.recompute, time.monotonic()
    flops = settings.model.flops_per_token(length)
    hardware_flops = settings.model.hardware_flops_per_token(length, recompute)
    utilised = "MFU {mfu:.1%}" if recompute == "none" else "MFU {mfu:.1%}, HFU {hfu:.1%}"
    owed = records is not None and records.lacks_evaluation() and is_due(progress.step, train)
    if run.votes.broadcast(int(owed)):  # the run was stopped in the midst of it
        if (evaluation := run.evaluate()) is None:
            return None
        if records:
            records.amend(evaluation.nats_per_token, evaluation.bits_per_byte)
    with Bar(train.steps, progress.step, shown=records is not None) as bar:
        while progress.step < train.steps:
            begun = time.perf_counter()
            size = run.batches.batch_size(progress.step)
            own = current_layout().rows(this_rank(), size)
            inputs, targets = run.batches.slice(progress.step, own.start, own.stop - own.start)
            count = run.batches.real_tokens(progress.step)
            mask = dropout_mask(settings, progress.step, range(own.start, own.stop))
            result = run.step(inputs, targets, count, mask)
            stop.unsaved()
            seconds = time.perf_counter() - begun
            progress.step += 1
            progress.tokens += count
            progress.not_finite = progress.not_finite + 1 if result.skipped else 0
            progress.sound = progress.sound if result.skipped else progress.step - 1
            spike = watch(progress, result.loss, result.gradient_norm, train)
            # asked once a step, of all workers: a later stop takes one more step
            stopped, written, failed = run.votes(stop.wished(), *run.manager.tell())
            run.manager.hear(written, failed)
            run.manager.look()

            rate = size * settings.data.seq_len / seconds  # of all tokens: prompts are computed as well
            row = row_of(progress, result, seconds, rate, rate * flops / run.peak, rate * hardware_flops / run.peak)
            last = progress.step == train.steps
            if is_due(progress.step, train):
                if evaluation := run.evaluate():
                    row.validation_loss = evaluation.nats_per_token
                    row.validation_bits_per_byte = evaluation.bits_per_byte
                    if not last:
                        say(
                            f"step {progress.step}: held out {evaluation.nats_per_token:.4f} nats a token, "
                            f"{evaluation.bits_per_byte:.4f} bits a byte"
                        )
                else:
                    stopped = 1
            if records:
                records.add(row)
                if jump := records.clock.jump():
                    say(
                        f"step {progress.step}: the system's clock was set by {jump:+,.0f} s, or the machine slept; "
                        "durations are measured by another clock, and TensorBoard's times go on by it"
                    )
                if time.monotonic() - drawn > DRAW_EVERY:
                    records.draw()
                    drawn = time.monotonic()
            if result.skipped:
                say(f"step {progress.step}: loss {result.loss} with gradient norm {result.gradient_norm}; skipped")
                check_not_lost(progress, settings)
            bar.advance(
                f"loss {result.loss:.3f}, lr {result.learning_rate:.2g}, norm {result.gradient_norm:.2f}, "
                f"{rate:,.0f} tok/s, {utilised.format(mfu=row.mfu, hfu=row.hfu)}"
            )
            if spike or stopped:
                return spike
            if not last and train.checkpoint_every and progress.step % train.checkpoint_every == 0:
                if result.skipped:  # these may be weights that no later step mends
                    say(f"step {progress.step}: no checkpoint, as the loss or a gradient is not finite")
                else:
                    run.save()
    return None


def finish(run: Run) -> Evaluation:
    """Saves what is not saved; after the last step, scores all held-out text and writes the model.

    Raises:
        Interrupted: it was not the last step.
        UserError: the state could not be saved.
    """
    step, lead = run.progress.step, this_rank() == 0
    if step not in steps_in(run.folder / CHECKPOINTS):
        run.save()
    if not run.manager.finish():
        if run.manager.worthless:
            raise UserError(f"the weights after step {step:,} are not finite: {advice(run.settings, run.progress)}")
        raise UserError(
            f"step {step:,} could not be saved: {run.manager.problem}; {same_command()} resumes from the last "
            "checkpoint"
        )
    if step < run.settings.train.steps:
        raise Interrupted(f"stopped after step {step}; {same_command()} resumes from there")
    if (result := run.result or run.evaluate()) is None:
        raise Interrupted(f"stopped after step {step}, the last; {same_command()} evaluates it and writes the model")
    if not math.isfinite(result.nats_per_token):
        raise UserError(
            f"the held-out loss after step {step:,} is {result.nats_per_token}, so no model is written: "
            f"{advice(run.settings, run.progress)}"
        )
    if lead:
        finetune = run.settings.finetune
        if finetune.lora_rank:
            save_adapter(run.manager.newest(), run.folder / ADAPTER, run.settings.model, finetune)
        export(run.manager.newest(), run.folder / "final", run.settings)
        run.manager.prune(step, step)
    stop.done()
    if run.records:
        say(report(result, run))
    return result


def row_of(progress: Progress, result: StepResult, seconds: float, rate: float, mfu: float, hfu: float) -> Row:
    """A step as a row of metrics.csv."""
    return Row(
        step=progress.step,
        loss=result.loss,
        cross_entropy=result.cross_entropy,
        learning_rate=result.learning_rate,
        gradient_norm=result.gradient_norm,
        skipped=int(result.skipped),
        tokens=progress.tokens,
        seconds=seconds,
        tokens_per_second=rate,
        mfu=mfu,
        hfu=hfu,
    )


def where_it_resumes(folder: Path) -> str:
    """What becomes of a run that is stopped at once."""
    steps = steps_in(folder / CHECKPOINTS)
    if not steps:
        return f"there is no checkpoint yet: {same_command()} starts over"
    return f"{same_command()} resumes from step {steps[0]}"


def report(result: Evaluation, run: Run) -> str:
    """The figures of a finished run."""
    decisions, gzip9 = len(run.progress.rewinds), run.prepared.meta["gzip9_bits_per_byte"]
    return (
        f"held out, all {result.tokens:,} tokens: {result.nats_per_token:.4f} nats a token, "
        f"{result.bits_per_byte:.4f} bits a byte\n"
        + (f"gzip -9 on the same text: {gzip9:.4f} bits a byte\n" if gzip9 is not None else "")
        + f"skipped steps: {sum(row.skipped for row in run.records.rows)}\n"
        + (f"decisions to go back or to leave out batches: {decisions}, in rewinds.json\n" if decisions else "")
        + f"the run is in {run.folder}: final/ opens alone, loss.png shows it, "
        "metrics.csv and tensorboard/ hold every step"
    )

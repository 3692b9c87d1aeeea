"""The training loop, top to bottom."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from mindspore_palm.checkpoint.manager import delete_incomplete
from mindspore_palm.checkpoint.timeline import batches_of, resume_step, with_remaining_ramp
from mindspore_palm.config import Settings
from mindspore_palm.console import Bar, say
from mindspore_palm.cost.memory import check_memory
from mindspore_palm.errors import Interrupted
from mindspore_palm.file_names import CHECKPOINTS
from mindspore_palm.launch import stop
from mindspore_palm.launch.supervisor import LAUNCHER
from mindspore_palm.machine import return_free_memory
from mindspore_palm.parallel.axes import current_layout, layout
from mindspore_palm.parallel.context import Device, join_workers, lost_workers, open_device, out_of_memory, this_rank
from mindspore_palm.parallel.votes import Votes
from mindspore_palm.train import hooks
from mindspore_palm.train.continuation import StartOptions, record_request
from mindspore_palm.train.evaluate import Evaluation
from mindspore_palm.train.finetune import dropout_mask, open_data
from mindspore_palm.train.finish import finish, where_it_resumes
from mindspore_palm.train.hooks import Hooks, StepInfo
from mindspore_palm.train.log.banner import banner
from mindspore_palm.train.log.metrics import MetricsRow
from mindspore_palm.train.log.peak import peak_of
from mindspore_palm.train.loss_scale import current_scale, overflowed, update_scale
from mindspore_palm.train.profile_options import ProfileOptions
from mindspore_palm.train.profiler import Profiler, compiled_graphs
from mindspore_palm.train.rewinding import decide_rewind
from mindspore_palm.train.run import Run
from mindspore_palm.train.run_folder import (
    RunFolderState,
    check_run_folder,
    finished_message,
    locked_run_folder,
    start_run_folder,
)
from mindspore_palm.train.spikes import Spike
from mindspore_palm.train.start import build_run, check_settings
from mindspore_palm.train.validation import held_out_batches

DRAW_EVERY = 60.0  # seconds between two drawings of loss.png


def train(settings: Settings, start: StartOptions | None = None) -> Evaluation | None:
    """Trains a PaLM from text to an exported model, or resumes training; returns its held-out loss.

    On several devices all workers call this. Rank 0 does all the logging, and writes all files but the shards of the
    other ranks.

    Args:
        settings: all of them.
        start: whether to delete an earlier run, accept changed settings or go back to a checkpoint.

    Returns:
        None if the run was already finished.

    Raises:
        UserError: settings, text or machine must be fixed; nothing is lost but steps after the last checkpoint.
        Interrupted: the user stopped the run; says where it resumes.
    """
    start = start or StartOptions()
    device = open_device(settings.train.device, tf32=settings.train.tf32)
    run_layout = check_settings(settings, device.name, start)
    memory = check_memory(settings, run_layout)
    join_workers(run_layout.devices, device.name)
    folder = Path(settings.train.output)
    needs_lock = this_rank() == 0 and LAUNCHER not in os.environ  # a launcher holds the lock for its workers
    lock = locked_run_folder(folder) if needs_lock else nullcontext()
    with layout(run_layout), lost_workers(), out_of_memory(), lock:
        return _train(settings, start, device, memory, folder)


def _train(
    settings: Settings, start: StartOptions, device: Device, memory: dict[str, int], folder: Path
) -> Evaluation | None:
    is_first, votes = this_rank() == 0, Votes()
    state = RunFolderState(votes.broadcast(check_run_folder(settings, start) if is_first else 0))
    if state is RunFolderState.FINISHED:
        say(finished_message(settings))
        return None
    prepared = open_data(settings, start.overwrite)
    return_free_memory()  # of preparing the text
    step = votes.broadcast(resume_step(folder, start.overwrite, start.rewind_to) if is_first else 0)
    batches_of(with_remaining_ramp(settings, step), prepared)  # these two raise if there is too little text
    list(held_out_batches(settings, prepared, limit=1))
    dtype, devices = current_layout().compute_dtype, current_layout().devices
    of_one = peak_of(device.name, dtype, settings.train.peak_tflops * 1e12, alone=devices == 1)
    peak = of_one.flops * devices
    say(banner(settings, device, prepared, memory, peak, of_one.source))
    if state is RunFolderState.STARTED:
        say(f"an earlier run in {folder} ended before its first checkpoint; starting over")
    if is_first:
        start_run_folder(folder, settings, state)
        delete_incomplete(folder / CHECKPOINTS)
        if start.asked:
            record_request(folder, start, settings, prepared)
    votes()
    stop.mark_started()
    stop.set_exit_message(lambda: f"stopped at once; {where_it_resumes(folder)}")
    with stop.handlers(), compiled_graphs(start.profile):
        try:
            return train_with_rewinds(partial(build_run, settings, start, folder, prepared, votes, peak), start.profile)
        except KeyboardInterrupt:  # only in a process that is not the command's own, such as a notebook's
            raise Interrupted(f"stopped at once; {where_it_resumes(folder)}") from None


def train_with_rewinds(build: Callable[[], Run], profile: ProfileOptions | None = None) -> Evaluation:
    """Trains to the end, and goes back to a checkpoint after each loss spike.

    Args:
        build: builds the run from its newest checkpoint.
        profile: steps to profile.

    Raises:
        UserError, Interrupted: as ``train``.
    """
    while True:
        run = build()
        with run.recorder or nullcontext():
            spike = run_steps(run, profile)
            if spike is None:
                return finish(run)
        decide_rewind(run, spike)
        if any(run.votes(stop.requested())):
            raise Interrupted(f"stopped after going back; {where_it_resumes(run.folder)}")
        del run
        gc.collect()  # frees its network before the next one is built


def run_steps(run: Run, profile: ProfileOptions | None = None) -> Spike | None:
    """Takes all steps up to the last one, a request to stop or a loss spike; returns the spike. Profiles some."""
    if not hooks.evaluate_last_row(run):
        return None
    train = run.settings.train
    with Bar(train.steps, run.progress.step, shown=run.recorder is not None) as bar:
        run_hooks = Hooks(run)
        run_hooks.add(hooks.watch_for_spikes)
        run_hooks.add(hooks.poll_workers)
        run_hooks.add(hooks.evaluate, every=train.eval_every)
        run_hooks.add(hooks.record)
        run_hooks.add(hooks.report_clock_jump)
        run_hooks.add(hooks.ChartDrawer(DRAW_EVERY))
        run_hooks.add(hooks.check_divergence)
        run_hooks.add(hooks.ProgressHook(bar))
        run_hooks.add(hooks.save_checkpoint, every=train.checkpoint_every, at_end=False)  # finish saves the last step
        if profile and run.recorder:
            run_hooks.add(Profiler(profile))
        for info in training_steps(run):
            run_hooks(info)
            if info.is_final:
                return info.spike
    return None


def training_steps(run: Run) -> Iterator[StepInfo]:
    """Takes one optimizer step per iteration, up to the last step of the run."""
    settings, progress, batches = run.settings, run.progress, run.batches
    length = settings.data.seq_len
    flops = settings.model.flops_per_token(length)
    hardware_flops = settings.model.hardware_flops_per_token(length, settings.parallel.recompute)
    while progress.step < settings.train.steps:
        start = time.perf_counter()
        size, tokens = batches.batch_size(progress.step), batches.real_tokens(progress.step)
        rows = current_layout().rows(this_rank(), size)
        inputs, targets = batches.slice(progress.step, rows.start, rows.stop - rows.start)
        mask = dropout_mask(settings, progress.step, range(rows.start, rows.stop))
        read = time.perf_counter()
        result = run.step(inputs, targets, tokens, mask, current_scale(progress, settings.train))
        stop.mark_unsaved()
        seconds = time.perf_counter() - start

        progress.step += 1
        progress.tokens += tokens
        update_scale(progress, result, settings.train)
        if not overflowed(result):
            progress.not_finite = progress.not_finite + 1 if result.skipped else 0
        progress.sound = progress.sound if result.skipped else progress.step - 1
        rate = size * length / seconds  # of all tokens, since prompts are computed as well
        row = MetricsRow(
            step=progress.step,
            loss=result.loss,
            cross_entropy=result.cross_entropy,
            learning_rate=result.learning_rate,
            gradient_norm=result.gradient_norm,
            skipped=int(result.skipped),
            tokens=progress.tokens,
            seconds=seconds,
            tokens_per_second=rate,
            mfu=rate * flops / run.peak,
            hfu=rate * hardware_flops / run.peak,
            loss_scale=result.loss_scale,
        )
        yield StepInfo(progress.step, result, row, start, read, start + seconds)

"""The end of a run: its last checkpoint, its evaluation, the exported model and the messages about them."""

from __future__ import annotations

import math
from pathlib import Path

from mindspore_palm.checkpoint.adapter import save_adapter
from mindspore_palm.checkpoint.format import steps_in
from mindspore_palm.checkpoint.model_folder import export
from mindspore_palm.checkpoint.training import HeldOut
from mindspore_palm.console import say
from mindspore_palm.cost.memory import readable, run_memory
from mindspore_palm.data.mixture import reached
from mindspore_palm.data.prepare_mixture import PreparedMixture
from mindspore_palm.errors import Interrupted, UserError, same_command
from mindspore_palm.file_names import ADAPTER, CHECKPOINTS, FINAL, LOSS_CHART, METRICS, REWINDS, TENSORBOARD
from mindspore_palm.launch import stop
from mindspore_palm.machine import peak_memory
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.train.divergence import recovery_advice
from mindspore_palm.train.evaluate import Evaluation
from mindspore_palm.train.run import Run

COUNTED = 2**22  # the last sequences of a run, whose sources are counted at its end, in a few seconds


def finish(run: Run) -> Evaluation:
    """Saves the last step; if it was the last of the run, scores all held-out text and exports the model.

    Raises:
        Interrupted: it was not the last step of the run.
        UserError: the state could not be saved, or is not finite.
    """
    step, progress, settings = run.progress.step, run.progress, run.settings
    if step not in steps_in(run.folder / CHECKPOINTS):
        run.save()
    if not run.manager.finish():
        if run.manager.state_not_finite:
            raise UserError(f"the weights after step {step:,} are not finite: {recovery_advice(settings, progress)}")
        raise UserError(
            f"step {step:,} could not be saved: {run.manager.problem}; {same_command()} resumes from the last "
            "checkpoint"
        )
    if step < settings.train.steps:
        raise Interrupted(f"stopped after step {step}; {same_command()} resumes from there")
    if (evaluation := run.final_evaluation or run.evaluate()) is None:
        raise Interrupted(f"stopped after step {step}, the last; {same_command()} evaluates it and writes the model")
    if not math.isfinite(evaluation.nats_per_token):
        raise UserError(
            f"the held-out loss after step {step:,} is {evaluation.nats_per_token}, so no model is written: "
            f"{recovery_advice(settings, progress)}"
        )
    if this_rank() == 0:
        if settings.finetune.lora_rank:
            save_adapter(run.manager.newest(), run.folder / ADAPTER, settings.model, settings.finetune)
        held_out = HeldOut(evaluation.tokens, evaluation.nats_per_token, evaluation.bits_per_byte)
        export(run.manager.newest(), run.folder / FINAL, settings, held_out)
        run.manager.prune(step, step)
    stop.mark_done(everywhere=this_rank() == 0)
    if run.recorder:
        say(report(evaluation, run))
    return evaluation


def report(evaluation: Evaluation, run: Run) -> str:
    """Summary of a finished run."""
    rows = run.recorder.rows if run.recorder else []
    rewinds, gzip9 = len(run.progress.rewinds), run.prepared.meta["gzip9_bits_per_byte"]
    return (
        f"held out, all {evaluation.tokens:,} tokens: {evaluation.nats_per_token:.4f} nats/token, "
        f"{evaluation.bits_per_byte:.4f} bits/byte\n"
        + (f"gzip -9 on the same text: {gzip9:.4f} bits/byte\n" if gzip9 is not None else "")
        + mixture_reached(run)
        + memory_taken(run)
        + f"skipped steps: {sum(int(row.skipped) for row in rows)}\n"
        + (f"decisions to go back or to skip batches: {rewinds}, in {REWINDS}\n" if rewinds else "")
        + f"the run is in {run.folder}: {FINAL}/ opens alone, {LOSS_CHART} shows it, "
        f"{METRICS} and {TENSORBOARD}/ hold every step"
    )


def memory_taken(run: Run) -> str:
    """A line on this process's peak of memory beside the estimate; empty unless it is all that trained, on a CPU."""
    here, peak = current_layout(), peak_memory()
    if here.target != "CPU" or here.devices > 1 or not peak:
        return ""
    estimate = sum(run_memory(run.settings, here).values())
    return f"memory: {readable(peak)} at the peak, estimated at {readable(estimate)}\n"


def mixture_reached(run: Run) -> str:
    """A line on the shares that the sources of a mixture had in what was trained on; empty for any other text."""
    if not isinstance(run.prepared, PreparedMixture):
        return ""
    result = reached(run.batches.taken(run.progress.step, COUNTED), run.batches.seq_len)
    return f"mixture of the tokens trained on: {run.prepared.describe(result[1])}\n" if result else ""


def where_it_resumes(folder: Path) -> str:
    """Where the same command resumes a run that is stopped without saving."""
    steps = steps_in(folder / CHECKPOINTS)
    if not steps:
        return f"there is no checkpoint yet: {same_command()} starts over"
    return f"{same_command()} resumes from step {steps[0]}"

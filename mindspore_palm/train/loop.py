"""The training loop, top to bottom."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from mindspore_palm.config import Settings
from mindspore_palm.data import Batches, Prepared, prepare, validation_batches
from mindspore_palm.errors import Interrupted
from mindspore_palm.model.initial import placements
from mindspore_palm.parallel.agree import Agreement
from mindspore_palm.parallel.axes import Layout, current_layout, layout
from mindspore_palm.parallel.check import check_layout, layout_of
from mindspore_palm.parallel.context import Device, join_workers, lost_workers, open_device, this_rank
from mindspore_palm.train.banner import banner
from mindspore_palm.train.build import build_step
from mindspore_palm.train.evaluate import Evaluation, Evaluator
from mindspore_palm.train.folder import check_run_folder, start_run_folder
from mindspore_palm.train.gather import whole_weights
from mindspore_palm.train.memory import check_memory
from mindspore_palm.train.peak import measure_peak
from mindspore_palm.train.records import Records, Row
from mindspore_palm.train.saved import save_model
from mindspore_palm.train.step import StepResult, TrainStep

DRAW_EVERY = 60.0  # seconds between two drawings of loss.png


def train(settings: Settings, overwrite: bool = False) -> Evaluation:
    """Trains a PaLM from text to a folder that opens alone; returns its held-out loss.

    On several devices, all workers call this; rank 0 alone speaks and writes.

    Args:
        settings: all of them.
        overwrite: whether an earlier run in the same folder may be deleted.

    Raises:
        UserError: something about settings, text or machine must be mended; nothing was trained.
        Interrupted: the user stopped the run; says whether the model was saved, and where.
    """
    device = open_device(settings.train.device)
    place = check_settings(settings, device.name)
    memory = check_memory(settings, place)
    join_workers(place.devices, device.name)
    with layout(place), lost_workers():
        return _train(settings, overwrite, device, memory)


def check_settings(settings: Settings, kind: str) -> Layout:
    """The layout of a run on a kind of device, if all sizes fit it.

    Raises:
        UserError: names setting, sizes and what to change.
    """
    place = layout_of(settings, kind)
    check_layout(settings, place, placements(settings.model, place))
    return place


def _train(settings: Settings, overwrite: bool, device: Device, memory: dict[str, int]) -> Evaluation:
    lead = this_rank() == 0
    folder = check_run_folder(settings, overwrite) if lead else Path(settings.train.output)
    prepared = prepare(settings.data, settings.model.vocab_size)
    batches = Batches(
        prepared.train, settings.data.seq_len, prepared.tokenizer.eod, settings.train.batch_ramp(), settings.train.seed
    )
    list(held_out(settings, prepared, limit=1))  # too little text is found before anything is computed
    peak = (settings.train.peak_tflops * 1e12 or measure_peak()) * current_layout().devices
    say(banner(settings, device, prepared, memory, peak))

    palm, step = build_step(settings)
    evaluator = Evaluator(palm, prepared.tokenizer.piece_bytes)
    agreement = Agreement()
    if lead:
        start_run_folder(folder, settings)
    saved = None
    try:
        keeping = Records(folder, prepared.meta["gzip9_bits_per_byte"]) if lead else nullcontext()
        with keeping as records, stop_requests() as stop:
            done = run_steps(settings, prepared, batches, step, evaluator, records, peak, stop, agreement)
            target = folder / ("final" if done == settings.train.steps else "interrupted")
            weights = whole_weights(palm, folder / "slices.tmp", agreement)
            if lead:
                save_model(target, weights, prepared.tokenizer.serialized, settings, done)
            saved = target
            if done < settings.train.steps or stop:
                raise Interrupted(f"stopped after step {done}; the model so far is in {saved}")
        result = evaluator(held_out(settings, prepared))
    except KeyboardInterrupt:
        kept = f"the model is in {saved}" if saved else f"no model was saved; metrics.csv is in {folder}"
        raise Interrupted(f"stopped at once; {kept}") from None
    if records:
        say(report(result, prepared, folder, records))
    return result


def run_steps(
    settings: Settings,
    prepared: Prepared,
    batches: Batches,
    step: TrainStep,
    evaluator: Evaluator,
    records: Records | None,
    peak: float,
    stop: list[int],
    agreement: Agreement,
) -> int:
    """All steps, until the last or until ``stop`` is not empty on any worker; returns how many were taken.

    ``records`` are kept by one worker and are None on the others.
    """
    every, flops = settings.train.eval_every, settings.model.flops_per_token(settings.data.seq_len)
    tokens, drawn = 0, time.monotonic()
    with tqdm(
        total=settings.train.steps, unit="step", dynamic_ncols=True, desc="compiling", disable=records is None
    ) as bar:
        for number in range(settings.train.steps):
            start = time.perf_counter()
            size = batches.batch_size(number)
            own = current_layout().rows(this_rank(), size)
            inputs, targets = batches.slice(number, own.start, own.stop - own.start)
            count = size * settings.data.seq_len  # sequences of training text are full: every token is real
            result = step(inputs, targets, count)
            seconds = time.perf_counter() - start
            tokens += count
            rate = count / seconds
            row = row_of(number + 1, result, tokens, seconds, rate, rate * flops / peak)
            stopped = agreement(bool(stop))  # asked once a step: a later stop takes one more step
            ends = number + 1 == settings.train.steps or stopped
            if ends or (every and (number + 1) % every == 0):
                evaluation = evaluator(held_out(settings, prepared, settings.train.eval_sequences))
                row.validation_loss, row.validation_bits_per_byte = evaluation.nats_per_token, evaluation.bits_per_byte
                if not ends:
                    say(
                        f"step {number + 1}: held out {evaluation.nats_per_token:.4f} nats a token, "
                        f"{evaluation.bits_per_byte:.4f} bits a byte"
                    )
            if records:
                records.add(row)
                if time.monotonic() - drawn > DRAW_EVERY:
                    records.draw()
                    drawn = time.monotonic()
            if result.skipped:
                say(f"step {number + 1}: loss {result.loss} with gradient norm {result.gradient_norm}; skipped")
            bar.set_description("training", refresh=False)
            bar.set_postfix_str(
                f"loss {result.loss:.3f}, lr {result.learning_rate:.2g}, norm {result.gradient_norm:.2f}, "
                f"{rate:,.0f} tok/s, MFU {row.mfu:.1%}",
                refresh=False,
            )
            bar.update()
            if ends:
                return number + 1
    return settings.train.steps


def row_of(step: int, result: StepResult, tokens: int, seconds: float, rate: float, mfu: float) -> Row:
    """A step as a row of metrics.csv."""
    return Row(
        step=step,
        loss=result.loss,
        cross_entropy=result.cross_entropy,
        learning_rate=result.learning_rate,
        gradient_norm=result.gradient_norm,
        skipped=int(result.skipped),
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=rate,
        mfu=mfu,
    )


def held_out(settings: Settings, prepared: Prepared, limit: int | None = None) -> Iterator:
    """Batches of held-out text, as many sequences each as a forward pass of training takes."""
    batch = settings.train.micro_batch_of(settings.train.batch_ramp()[0][1])
    return validation_batches(prepared.validation, settings.data.seq_len, prepared.tokenizer.eod, batch, limit)


def say(text: str) -> None:
    """Prints above the progress bar, on rank 0. A reader that went away (``| head``) does not end the run."""
    if this_rank() != 0:
        return
    try:
        tqdm.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Gathers SIGINT and SIGTERM, so that a step is never cut in two; a second Ctrl-C no longer waits for the step."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        say("stopping after this step; Ctrl-C again stops now, without saving")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def report(result: Evaluation, prepared: Prepared, folder: Path, records: Records) -> str:
    """The figures of a finished run."""
    skipped = sum(row.skipped for row in records.rows)
    return (
        f"held out, all {result.tokens:,} tokens: {result.nats_per_token:.4f} nats a token, "
        f"{result.bits_per_byte:.4f} bits a byte\n"
        f"gzip -9 on the same text: {prepared.meta['gzip9_bits_per_byte']:.4f} bits a byte\n"
        f"skipped steps: {skipped}\n"
        f"the run is in {folder}: final/ opens alone, loss.png shows it, metrics.csv and tensorboard/ hold every step"
    )

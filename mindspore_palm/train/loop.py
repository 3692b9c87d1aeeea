"""The training loop, top to bottom."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from mindspore_palm.config import Settings
from mindspore_palm.data import Batches, Prepared, prepare, validation_batches
from mindspore_palm.data.atomic import write_atomically
from mindspore_palm.errors import Interrupted, UserError
from mindspore_palm.model.loss import Loss
from mindspore_palm.model.palm import PaLM
from mindspore_palm.optim import make_optimizer
from mindspore_palm.parallel.context import open_device
from mindspore_palm.settings import settings_to_yaml
from mindspore_palm.train.banner import banner
from mindspore_palm.train.evaluate import Evaluation, Evaluator
from mindspore_palm.train.memory import check_memory
from mindspore_palm.train.peak import measure_peak
from mindspore_palm.train.records import Records, Row
from mindspore_palm.train.saved import save_model
from mindspore_palm.train.step import StepResult, TrainStep

DRAW_EVERY = 60.0  # seconds between two drawings of loss.png
RUN = ("metrics.csv", "loss.png", "tensorboard", "final", "interrupted")  # what a run leaves, config.yaml apart


def train(settings: Settings, overwrite: bool = False) -> Evaluation:
    """Trains a PaLM from text to a folder that opens alone; returns its held-out loss.

    Args:
        settings: all of them.
        overwrite: whether an earlier run in the same folder may be deleted.

    Raises:
        UserError: something about settings, text or machine must be mended; nothing was trained.
        Interrupted: the user stopped the run; says whether the model was saved, and where.
    """
    memory = check_memory(settings)
    device = open_device(settings.train.device)
    folder = check_run_folder(settings, overwrite)
    prepared = prepare(settings.data, settings.model.vocab_size)
    batches = Batches(
        prepared.train, settings.data.seq_len, prepared.tokenizer.eod, settings.train.batch_ramp(), settings.train.seed
    )
    list(held_out(settings, prepared, limit=1))  # too little text is found before anything is computed
    peak = settings.train.peak_tflops * 1e12 or measure_peak()
    say(banner(settings, device, prepared, memory, peak))

    palm = PaLM(settings.model, settings.train.seed)
    optimizer = make_optimizer(palm.trainable_params(), settings.optimizer, settings.train.steps)
    step = TrainStep(
        Loss(palm, settings.train.z_loss), optimizer, settings.optimizer.clip_norm, settings.train.micro_batch
    )
    evaluator = Evaluator(palm, prepared.tokenizer.piece_bytes)
    start_run_folder(folder, settings)
    saved = None
    try:
        with Records(folder, prepared.meta["gzip9_bits_per_byte"]) as records, stop_requests() as stop:
            run_steps(settings, prepared, batches, step, evaluator, records, peak, stop)
            done = len(records.rows)
            target = folder / ("final" if done == settings.train.steps else "interrupted")
            save_model(target, palm, prepared.tokenizer.serialized, settings, done)
            saved = target
            if stop:
                raise Interrupted(f"stopped after step {done}; the model so far is in {saved}")
        result = evaluator(held_out(settings, prepared))
    except KeyboardInterrupt:
        kept = f"the model is in {saved}" if saved else f"no model was saved; metrics.csv is in {folder}"
        raise Interrupted(f"stopped at once; {kept}") from None
    say(report(result, prepared, folder, records))
    return result


def run_steps(
    settings: Settings,
    prepared: Prepared,
    batches: Batches,
    step: TrainStep,
    evaluator: Evaluator,
    records: Records,
    peak: float,
    stop: list[int],
) -> None:
    """All steps, until the last or until ``stop`` is not empty."""
    every, flops = settings.train.eval_every, settings.model.flops_per_token(settings.data.seq_len)
    tokens, drawn = 0, time.monotonic()
    with tqdm(total=settings.train.steps, unit="step", dynamic_ncols=True, desc="compiling") as bar:
        for number in range(settings.train.steps):
            start = time.perf_counter()
            inputs, targets = batches.batch(number)
            result = step(inputs, targets)
            seconds = time.perf_counter() - start
            tokens += targets.size
            rate = targets.size / seconds
            row = row_of(number + 1, result, tokens, seconds, rate, rate * flops / peak)
            ends = number + 1 == settings.train.steps or bool(stop)  # asked once: a later stop takes one more step
            if ends or (every and (number + 1) % every == 0):
                evaluation = evaluator(held_out(settings, prepared, settings.train.eval_sequences))
                row.validation_loss, row.validation_bits_per_byte = evaluation.nats_per_token, evaluation.bits_per_byte
                if not ends:
                    say(
                        f"step {number + 1}: held out {evaluation.nats_per_token:.4f} nats a token, "
                        f"{evaluation.bits_per_byte:.4f} bits a byte"
                    )
            records.add(row)
            if result.skipped:
                say(f"step {number + 1}: loss {result.loss} with gradient norm {result.gradient_norm}; skipped")
            if time.monotonic() - drawn > DRAW_EVERY:
                records.draw()
                drawn = time.monotonic()
            bar.set_description("training", refresh=False)
            bar.set_postfix_str(
                f"loss {result.loss:.3f}, lr {result.learning_rate:.2g}, norm {result.gradient_norm:.2f}, "
                f"{rate:,.0f} tok/s, MFU {row.mfu:.1%}",
                refresh=False,
            )
            bar.update()
            if ends:
                return


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


def check_run_folder(settings: Settings, overwrite: bool) -> Path:
    """Makes the folder of a run and sees that it can be written, before hours of work; deletes nothing.

    Raises:
        UserError: the folder holds a run already.
        OSError: it cannot be written.
    """
    folder = Path(settings.train.output)
    if not overwrite and any((folder / name).exists() for name in RUN):
        raise UserError(
            f"{folder} holds a run already; set train.output to another folder, or delete that run by --overwrite"
        )
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / "writable"
    with write_atomically(probe) as file:
        file.write(b"this run can write here\n")
    probe.unlink()
    return folder


def start_run_folder(folder: Path, settings: Settings) -> None:
    """Deletes an earlier run, now that this one is sure to begin, and writes the resolved settings.

    Raises:
        OSError: a file could not be deleted or written.
    """
    for path in (folder / name for name in RUN):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with write_atomically(folder / "config.yaml") as file:
        file.write(settings_to_yaml(settings).encode())


def say(text: str) -> None:
    """Prints above the progress bar. A reader that went away (``| head``) does not end the run."""
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
        tqdm.write("stopping after this step; Ctrl-C again stops now, without saving")

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

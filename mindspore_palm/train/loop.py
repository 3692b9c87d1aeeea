"""The training loop, top to bottom."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from mindspore_palm.config import Settings
from mindspore_palm.data import Batches, Prepared, validation_batches
from mindspore_palm.errors import Interrupted, UserError
from mindspore_palm.model.initial import placements
from mindspore_palm.parallel.agree import Agreement
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
from mindspore_palm.train.adapter import ADAPTER, save_adapter
from mindspore_palm.train.banner import banner
from mindspore_palm.train.build import build_step
from mindspore_palm.train.checkpoint import steps_in
from mindspore_palm.train.evaluate import Evaluation, Evaluator
from mindspore_palm.train.finetune import dropout_mask, open_data
from mindspore_palm.train.folder import CHECKPOINTS, Found, check_run_folder, finished, only_run, start_run_folder
from mindspore_palm.train.keeper import Keeper, clear
from mindspore_palm.train.memory import check_memory
from mindspore_palm.train.peak import measure_peak
from mindspore_palm.train.progress import Progress, Rewind, read_rewinds, skipped, write_rewinds
from mindspore_palm.train.records import Records, Row, cut_records
from mindspore_palm.train.resume import Start, check_corpus, decide_by_hand, restore
from mindspore_palm.train.saved import export
from mindspore_palm.train.speak import say
from mindspore_palm.train.spikes import Spike, batches_to_skip, step_to_go_back_to, tries, watch
from mindspore_palm.train.state import fingerprint, state_of
from mindspore_palm.train.step import StepResult, TrainStep

DRAW_EVERY = 60.0  # seconds between two drawings of loss.png
LOST = 25  # steps in a row that are not finite, after which no later one will be


@dataclass
class Run:
    """What a run works with; built anew each time that it goes back to a checkpoint."""

    settings: Settings
    folder: Path
    prepared: Prepared
    batches: Batches
    progress: Progress
    step: TrainStep
    evaluator: Evaluator
    records: Records | None
    """Kept by the first worker; None on the others."""
    keeper: Keeper
    agreement: Agreement
    peak: float
    """FLOP/s of all devices."""
    stop: list[int]
    """Signals that asked this worker to stop."""

    def save(self) -> None:
        """Begins a checkpoint of the last step."""
        self.keeper.save(self.progress.step, state_of(self.settings, self.prepared, self.progress, self.batches))


def train(settings: Settings, start: Start | None = None) -> Evaluation | None:
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
    device = open_device(settings.train.device)
    place = check_settings(settings, device.name)
    memory = check_memory(settings, place)
    join_workers(place.devices, device.name)
    folder = Path(settings.train.output)
    with layout(place), lost_workers(), out_of_memory(), only_run(folder) if this_rank() == 0 else nullcontext():
        return _train(settings, start or Start(), device, memory, folder)


def check_settings(settings: Settings, kind: str) -> Layout:
    """The layout of a run on a kind of device, if all sizes fit it.

    Raises:
        UserError: names setting, sizes and what to change.
    """
    place = layout_of(settings, kind)
    check_layout(settings, place, placements(settings.model, place))
    return place


def _train(settings: Settings, start: Start, device: Device, memory: dict[str, int], folder: Path) -> Evaluation | None:
    lead, agreement = this_rank() == 0, Agreement()
    found = Found(agreement.told_by_first(check_run_folder(settings, start) if lead else 0))
    if found is Found.FINISHED:
        say(finished(settings))
        return None
    prepared = open_data(settings)
    batches_of(settings, prepared)
    list(held_out(settings, prepared, limit=1))  # too little text is found before anything is computed
    place = current_layout()
    peak = (settings.train.peak_tflops * 1e12 or measure_peak(device.name, place.compute_dtype)) * place.devices
    say(banner(settings, device, prepared, memory, peak))
    if found is Found.BEGUN:
        say(f"an earlier run in {folder} ended before its first checkpoint; beginning anew")
    if lead:
        start_run_folder(folder, settings, found)
        clear(folder / CHECKPOINTS)
        if start.asked:
            decide_by_hand(folder, start, batches_of(settings, prepared, read_rewinds(folder)))
    agreement()
    with stop_requests(folder) as stop:
        while True:
            run = assemble(settings, start, folder, prepared, agreement, peak, stop)
            with run.records or nullcontext():
                spike = run_steps(run)
                if spike is None:
                    return finish(run)
            go_back(run, spike)
            del run
            gc.collect()  # its network makes room for the next one


def assemble(
    settings: Settings,
    start: Start,
    folder: Path,
    prepared: Prepared,
    agreement: Agreement,
    peak: float,
    stop: list[int],
) -> Run:
    """Network, newest checkpoint and records: the run as it stands.

    A network that has run keeps its own copies of the weights, which MindSpore does not give new values: so going back
    is starting again.
    """
    lead = this_rank() == 0
    palm, step = build_step(settings)
    progress, before = restore(folder, step.state, agreement)
    check_corpus(before.get("corpus", {}), fingerprint(prepared), start, settings)
    records = None
    if lead:
        cut_records(folder, progress.step)
        marks = [(rewind.to, f"from step {rewind.at:,} back to {rewind.to:,}") for rewind in progress.rewinds]
        records = Records(folder, prepared.meta["gzip9_bits_per_byte"], marks)
    if progress.step:
        say(f"going on from step {progress.step}")
        if records and (not records.rows or records.rows[-1].step < progress.step):
            say("metrics.csv lacks the last rows before that step: somebody has taken them out")
    tokenizer = prepared.tokenizer.serialized
    keeper = Keeper(
        folder / CHECKPOINTS, step.state, settings, tokenizer, agreement, records.sync if records else nullcontext
    )
    evaluator = Evaluator(palm, prepared.tokenizer.piece_bytes)
    batches = batches_of(settings, prepared, progress.rewinds)
    return Run(settings, folder, prepared, batches, progress, step, evaluator, records, keeper, agreement, peak, stop)


def run_steps(run: Run) -> Spike | None:
    """All steps, until the last, until a worker was asked to stop, or until the loss has spiked: the spike then."""
    settings, train, progress, records = run.settings, run.settings.train, run.progress, run.records
    length, recompute, drawn = settings.data.seq_len, settings.parallel.recompute, time.monotonic()
    flops = settings.model.flops_per_token(length)
    hardware_flops = settings.model.hardware_flops_per_token(length, recompute)
    utilised = "MFU {mfu:.1%}" if recompute == "none" else "MFU {mfu:.1%}, HFU {hfu:.1%}"
    with tqdm(
        total=train.steps,
        initial=progress.step,
        unit="step",
        dynamic_ncols=True,
        desc="compiling",
        disable=records is None,
    ) as bar:
        while progress.step < train.steps:
            begun = time.perf_counter()
            size = run.batches.batch_size(progress.step)
            own = current_layout().rows(this_rank(), size)
            inputs, targets = run.batches.slice(progress.step, own.start, own.stop - own.start)
            count = run.batches.real_tokens(progress.step)
            mask = dropout_mask(settings, progress.step, range(own.start, own.stop))
            result = run.step(inputs, targets, count, mask)
            seconds = time.perf_counter() - begun
            progress.step += 1
            progress.tokens += count
            progress.not_finite = progress.not_finite + 1 if result.skipped else 0
            spike = watch(progress, result.loss, result.gradient_norm, train)
            # asked once a step, of all workers: a later stop takes one more step
            stopped, written, failed = run.agreement(bool(run.stop), *run.keeper.tell())
            run.keeper.hear(written, failed)
            run.keeper.look()

            rate = size * settings.data.seq_len / seconds  # of all tokens: prompts are computed as well
            row = row_of(progress, result, seconds, rate, rate * flops / run.peak, rate * hardware_flops / run.peak)
            last = progress.step == train.steps
            if last or (train.eval_every and progress.step % train.eval_every == 0):
                evaluation = run.evaluator(held_out(settings, run.prepared, train.eval_sequences))
                row.validation_loss, row.validation_bits_per_byte = evaluation.nats_per_token, evaluation.bits_per_byte
                if not last:
                    say(
                        f"step {progress.step}: held out {evaluation.nats_per_token:.4f} nats a token, "
                        f"{evaluation.bits_per_byte:.4f} bits a byte"
                    )
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
                check_not_lost(progress, train.steps)
            bar.set_description("training", refresh=False)
            bar.set_postfix_str(
                f"loss {result.loss:.3f}, lr {result.learning_rate:.2g}, norm {result.gradient_norm:.2f}, "
                f"{rate:,.0f} tok/s, {utilised.format(mfu=row.mfu, hfu=row.hfu)}",
                refresh=False,
            )
            bar.update()
            if spike or stopped:
                return spike
            if not last and train.checkpoint_every and progress.step % train.checkpoint_every == 0:
                run.save()
    return None


def check_not_lost(progress: Progress, steps: int) -> None:
    """Sees that some step may still change something.

    Raises:
        UserError: none of the last steps, or of all there are, was finite.
    """
    if progress.not_finite >= LOST or progress.not_finite == steps:
        raise UserError(
            f"the loss or a gradient was not finite in the last {progress.not_finite} steps, up to step "
            f"{progress.step:,}, and nothing is learned any more; lower optimizer.learning_rate, or go back by "
            "--rewind-to and leave out batches by --skip-batches"
        )


def go_back(run: Run, spike: Spike) -> None:
    """Decides, for all workers, how far to go back and what to leave out; from here on the decision holds.

    Raises:
        UserError: the same spike came back too often.
    """
    train, rewinds = run.settings.train, run.progress.rewinds
    run.keeper.finish()
    count = tries(rewinds, spike, train)
    if count >= train.spike_tries:
        raise UserError(
            f"{spike}, after going back {count} times for it; lower optimizer.learning_rate, leave out other batches "
            "by --rewind-to and --skip-batches, or let it try more often by train.spike_tries"
        )
    there = steps_in(run.folder / CHECKPOINTS)
    to = run.agreement.told_by_first(step_to_go_back_to(there, spike, train.spike_look_back))
    batches = batches_to_skip(train, count, spike.last - to)
    skip = run.batches.position(to), run.batches.position(to + batches)
    if this_rank() == 0:
        write_rewinds(run.folder, [*rewinds, Rewind(str(spike), spike.last, to, skip)])
    nth = f"try {count + 1} of {train.spike_tries}"
    say(f"{spike}; going back to step {to:,} and leaving out {batches:,} batches ({nth})")
    run.agreement()


def finish(run: Run) -> Evaluation:
    """Saves what is not saved; after the last step, scores all held-out text and writes the model.

    Raises:
        Interrupted: it was not the last step.
        UserError: the state could not be saved.
    """
    step, lead = run.progress.step, this_rank() == 0
    if step not in steps_in(run.folder / CHECKPOINTS):
        run.save()
    if not run.keeper.finish():
        raise UserError(
            f"step {step:,} could not be saved: {run.keeper.problem}; the same command goes on from the last checkpoint"
        )
    if step < run.settings.train.steps:
        raise Interrupted(f"stopped after step {step}; the same command goes on from there")
    result = run.evaluator(held_out(run.settings, run.prepared))
    if lead:
        finetune = run.settings.finetune
        if finetune.lora_rank:
            save_adapter(run.keeper.newest(), run.folder / ADAPTER, run.settings.model, finetune)
        export(run.keeper.newest(), run.folder / "final", run.settings)
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


def batches_of(settings: Settings, prepared: Prepared, rewinds: Sequence[Rewind] = ()) -> Batches:
    """Training batches, less those that decisions leave out."""
    data, train = settings.data, settings.train
    eod, left_out = prepared.tokenizer.eod, skipped(rewinds)
    return Batches(prepared.train, data.seq_len, eod, train.batch_ramp(), train.seed, left_out)


def held_out(settings: Settings, prepared: Prepared, limit: int | None = None) -> Iterator:
    """Batches of held-out text, as many sequences each as a forward pass of training takes."""
    batch = settings.train.micro_batch_of(settings.train.batch_ramp()[0][1])
    return validation_batches(prepared.validation, settings.data.seq_len, prepared.tokenizer.eod, batch, limit)


@contextmanager
def stop_requests(folder: Path) -> Iterator[list[int]]:
    """Gathers SIGINT and SIGTERM, so that a step is never cut in two; a second Ctrl-C no longer waits for the step.

    Raises:
        Interrupted: at the second one.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not received:  # SIGTERM may come twice: to all processes of a job, and from the one that started this
            received.append(number)
            say("stopping after this step; Ctrl-C again stops now, without saving")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    except KeyboardInterrupt:
        there = steps_in(folder / CHECKPOINTS)
        goes_on = f"the same command goes on from step {there[0]}" if there else "there is no checkpoint yet"
        raise Interrupted(f"stopped at once; {goes_on}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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

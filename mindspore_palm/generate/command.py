"""``palm generate``: a trained model continues prompts in a terminal."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mindspore_palm.checkpoint.model_folder import find_model, load, load_tokenizer
from mindspore_palm.config import ParallelConfig, Settings
from mindspore_palm.data.prompt import Prompt
from mindspore_palm.data.prompt_file import prompt_of
from mindspore_palm.data.vocabulary import padding_note
from mindspore_palm.errors import Interrupted, UserError
from mindspore_palm.file_names import CONFIG, WORKERS
from mindspore_palm.generate.cpu import step as cpu_step
from mindspore_palm.generate.generator import Generator
from mindspore_palm.generate.sampling import Sampling
from mindspore_palm.generate.sequence import Generation, GrowingSequence
from mindspore_palm.generate.transcript import Transcript
from mindspore_palm.launch.interrupts import Interrupts, end_process
from mindspore_palm.launch.workers import Workers
from mindspore_palm.model.weights import placements
from mindspore_palm.parallel.axes import MODEL_AXES, Layout, layout
from mindspore_palm.parallel.check import check_layout, layout_of, partitions_for
from mindspore_palm.parallel.context import choose_device, is_worker, join_workers, open_device
from mindspore_palm.parallel.host import build
from mindspore_palm.parallel.workers import check_workers
from mindspore_palm.settings import load_settings

MAX_BATCH = 8  # prompts that are continued together

SUPPORTED = ("block", "mlp", "norm", "norm_epsilon", "norm_scale", "final_norm_scale", "scaled_logits", "xpos_base")
"""Departures from PaLM with which a network decodes on several devices. A cache of every head is not sharded yet."""


@dataclass(frozen=True)
class GenerateOptions:
    """The options of the command."""

    checkpoint: Path
    """A run's folder, or a folder in it that holds a model."""
    prompts: tuple[str, ...]
    sampling: Sampling
    context: int = 0
    """Maximum number of tokens that the model sees; 0: as many as it was trained on."""
    interactive: bool = False
    log_probs: bool = False
    device: str = "auto"
    devices: int = 1
    """Devices over which heads and vocabulary are sharded."""


def run(options: GenerateOptions, command: Sequence[str], interrupts: Interrupts) -> None:
    """Continues the prompts in this process; for several devices on CPU, in workers that it starts.

    Args:
        options: the options.
        command: script and arguments to start workers with.
        interrupts: Ctrl-C; it is listened to on one device.

    Raises:
        UserError: the checkpoint, a prompt or an option does not fit.
        Interrupted: Ctrl-C; what was generated until then is printed.
    """
    settings = _settings_of(options)
    if settings.parallel.devices > 1 and options.interactive:
        raise UserError("--interactive is for one device; leave --devices out")
    check_workers(options.devices, "--devices")
    target = choose_device(options.device, "--device")[0]
    current = dataclasses.replace(layout_of(settings, target), table=MODEL_AXES)
    _check_devices(settings, current)
    check_layout(settings, current, placements)
    if current.devices > 1 and not is_worker():
        _start_workers(current.devices, target, command)
        return
    try:
        _generate(options, settings, current, interrupts)
    except KeyboardInterrupt:
        raise Interrupted("\nstopped") from None


def _settings_of(options: GenerateOptions) -> Settings:
    """The settings of the checkpoint's run, on the requested devices.

    Raises:
        UserError: the folder holds no model, or the context is longer than the model was trained on.
    """
    settings, _ = load_settings(find_model(options.checkpoint) / CONFIG)
    trained = settings.data.seq_len
    if options.context < 0 or options.context == 1:
        raise UserError(
            f"--context {options.context}: a prompt and one more token need 2 or more; leave it out for {trained:,}"
        )
    if options.context > trained:
        raise UserError(
            f"--context {options.context}: the model was trained on {trained} tokens and knows no longer distances; "
            f"set it to at most {trained}, or leave it out: longer texts continue in a window of their last tokens"
        )
    parallel = ParallelConfig(model=options.devices, shard_weights="off")
    # weights are float32 and read once a token, so another dtype saves nothing; and any machine has float32
    train = settings.train.model_copy(update={"compute_dtype": "float32"})
    return settings.model_copy(update={"parallel": parallel, "train": train})


def _check_devices(settings: Settings, current: Layout) -> None:
    model, devices = settings.model, current.devices
    if devices > 1 and (departures := model.departures(SUPPORTED)):
        named = " and ".join(f"model.{name}={value}" for name, value in departures.items())
        raise UserError(f"--devices {devices}: a model with {named} decodes on one device; leave --devices out")
    fitting = (
        n for n in range(1, min(devices, model.heads + 1)) if model.heads % n == 0 and model.padded_vocab % n == 0
    )
    fits = max((n for n in fitting if partitions_for(n)), default=1)
    if not partitions_for(devices):
        raise UserError(
            f"--devices {devices}: MindSpore partitions for 1, 2, 4 or a multiple of 8 devices; set it to {fits}"
        )
    for axis, count in (("heads", model.heads), ("rows of the embedding", model.padded_vocab)):
        if count % devices:
            raise UserError(
                f"--devices {devices}: the model's {count:,} {axis} cannot be sharded over {devices}; set it to {fits}"
            )


def _start_workers(devices: int, target: str, command: Sequence[str]) -> None:
    if target != "CPU":
        raise UserError(
            f"--devices {devices}: on {target}, start one worker per device: msrun --worker_num={devices} "
            f"--local_worker_num=<devices of this machine> --join=True {' '.join(command)}"
        )
    build.extension()
    cast(io.TextIOWrapper, sys.stdout).reconfigure(encoding="utf-8")
    with tempfile.TemporaryDirectory() as logs:
        try:
            Workers(devices, command, Path(logs) / WORKERS).join()
        except Interrupted:
            raise Interrupted("\nstopped") from None


def _generate(options: GenerateOptions, settings: Settings, current: Layout, interrupts: Interrupts) -> None:
    batch = min(MAX_BATCH, max(1, len(options.prompts)))
    with _opened(options, settings, current, batch) as (generator, rank):
        terminal = Terminal(generator, options.sampling, options.log_probs, interrupts, rank)
        if options.interactive:
            terminal.converse(options.prompts)
        elif len(options.prompts) == 1:
            terminal.write(options.prompts[0])
        else:
            terminal.write_all(options.prompts)


@contextmanager
def open_generator(checkpoint: Path, device: str, context: int, batch: int) -> Iterator[tuple[Generator, Settings]]:
    """A model that decodes on one device, with its settings, for commands other than this one.

    Args:
        checkpoint: a run's folder, or a folder in it that holds a model.
        device: the value of --device.
        context: maximum number of tokens that the model sees; 0: as many as it was trained on.
        batch: number of sequences that are decoded together.

    Raises:
        UserError: the checkpoint or an option does not fit.
    """
    options = GenerateOptions(checkpoint, (), Sampling(), context, device=device)
    settings = _settings_of(options)
    target = choose_device(device, "--device")[0]
    current = dataclasses.replace(layout_of(settings, target), table=MODEL_AXES)
    check_layout(settings, current, placements)
    with _opened(options, settings, current, batch) as (generator, _):
        yield generator, settings


@contextmanager
def _opened(
    options: GenerateOptions, settings: Settings, current: Layout, batch: int
) -> Iterator[tuple[Generator, int]]:
    """The generator, and the rank of this worker."""
    tokenizer = load_tokenizer(options.checkpoint)
    if note := padding_note(settings.model, tokenizer.vocab_size, tokenizer.model_file):
        print(f"note: {note}", file=sys.stderr)
    open_device(options.device, "--device")
    rank = join_workers(current.devices, current.target)
    with layout(current):
        palm = load(options.checkpoint)
        if cpu_step.wanted(palm.config) and not cpu_step.usable(palm.config):
            print("note: no working g++ was found; MindSpore's own ops decode instead, slower", file=sys.stderr)
        context = options.context or settings.data.seq_len
        yield Generator(palm, tokenizer, context, batch, str(find_model(options.checkpoint))), rank


class Terminal:
    """Prints generated text to standard output, and tokens and time to standard error.

    Args:
        generator: the generator.
        sampling: the settings.
        log_probs: whether to list every token with its log-probability.
        interrupts: Ctrl-C. It ends a generation after the token at hand; a second one ends the process.
        rank: this worker's rank; only rank 0 prints.
    """

    def __init__(
        self, generator: Generator, sampling: Sampling, log_probs: bool, interrupts: Interrupts, rank: int = 0
    ) -> None:
        self._generator, self._sampling, self._log_probs = generator, sampling, log_probs
        self._interrupts, self._interrupted = interrupts, threading.Event()
        self._status = not is_worker()  # msrun joins both streams of a worker
        if rank > 0:
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
        cast(io.TextIOWrapper, sys.stdout).reconfigure(encoding="utf-8")

    def write(self, prompt: str, seen: Prompt | None = None) -> list[int]:
        """Prints a prompt and streams its continuation; returns the tokens after the boundary between the two.

        Args:
            prompt: the text to print.
            seen: the prompt that the model sees; None: ``prompt``.

        Raises:
            UserError: the prompt does not fit.
            Interrupted: Ctrl-C.
        """
        start = time.perf_counter()
        sequence = self._generator.begin(self._generator.read_prompt(seen or prompt), self._sampling)
        sys.stdout.write(prompt)
        sys.stdout.flush()
        for _ in self._grow([sequence]):
            sys.stdout.write(sequence.piece())
            sys.stdout.flush()
        print(flush=True)
        self._report([sequence.result()], time.perf_counter() - start)
        return sequence.opening + sequence.token_ids

    def write_all(self, prompts: Sequence[str]) -> None:
        """Prints several prompts with their continuations.

        Raises:
            UserError: a prompt does not fit.
            Interrupted: Ctrl-C.
        """
        start = time.perf_counter()
        sequences = self._generator.begin_all(prompts, self._sampling)
        for _ in self._grow(sequences):
            pass
        seconds = time.perf_counter() - start
        generations = [sequence.result() for sequence in sequences]
        for number, (prompt, generation) in enumerate(zip(prompts, generations, strict=True), 1):
            print(f"--- {number}\n{prompt}{generation.text}", flush=True)
        self._report(generations, seconds)

    def _grow(self, sequences: Sequence[GrowingSequence]) -> Iterator[None]:
        """Generates until all sequences are finished, or until Ctrl-C; yields after every step."""
        with self._interrupts.have(self._interrupt):
            for _ in self._generator.run(sequences):
                yield
                if self._interrupted.is_set():
                    return

    def _interrupt(self) -> None:
        if self._interrupted.is_set():
            end_process()
        self._interrupted.set()

    def converse(self, prompts: Sequence[str]) -> None:
        """Appends what the user types to the text and continues it, until the end of input.

        An empty line continues without new text. The beginning of a text that no longer fits the context is dropped.
        """
        print("type how the text continues, then Enter; Enter alone: the model continues; Ctrl-D ends", file=sys.stderr)
        transcript, waiting = Transcript(self._generator.tokenizer, self._generator.context), list(prompts)
        while True:
            try:
                line = waiting.pop(0) if waiting else input("> ")
                prompt = transcript.add_text(prompt_of(os.fsencode(line), "the line") if line else "")
            except EOFError:
                print(file=sys.stderr)
                return
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                continue
            transcript.add_tokens(self.write(line, prompt))

    def _report(self, generations: Sequence[Generation], seconds: float) -> None:
        if self._log_probs:
            for generation in generations:
                print("\nlog-probability, token")
                for token, log_prob in zip(generation.token_ids, generation.log_probs, strict=True):
                    print(f"{log_prob:9.4f}  {self._generator.tokenizer.decode([token])!r}")
        count = sum(len(generation.token_ids) for generation in generations)
        ends = ", ".join(generation.finished or "Ctrl-C" for generation in generations)
        if self._status:
            print(f"[{count} tokens in {seconds:.2f} s, compilation included; ended by {ends}]", file=sys.stderr)
        if self._interrupted.is_set():
            raise Interrupted("stopped")

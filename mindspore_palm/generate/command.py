"""What ``run/generate.py`` does: a trained model continues prompts in a terminal."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mindspore_palm.checkpoint.model_folder import CONFIG, find_model, load, load_tokenizer
from mindspore_palm.config import ParallelConfig, Settings
from mindspore_palm.data.border import Prompt, at_border
from mindspore_palm.data.corpus import BOM
from mindspore_palm.data.files import shown
from mindspore_palm.data.vocabulary import padding_note
from mindspore_palm.errors import Interrupted, UserError
from mindspore_palm.generate.cpu import step as cpu_step
from mindspore_palm.generate.generator import Generation, Generator
from mindspore_palm.generate.sampling import Sampling
from mindspore_palm.launch.workers import Workers
from mindspore_palm.model.initial import placements
from mindspore_palm.parallel.axes import MODEL_AXES, Layout, layout
from mindspore_palm.parallel.check import check_layout, layout_of, partitions_for
from mindspore_palm.parallel.context import choose_device, is_worker, join_workers, open_device
from mindspore_palm.parallel.host import build
from mindspore_palm.parallel.workers import check_workers
from mindspore_palm.settings import load_settings

LONGEST = 1 << 26  # bytes of a prompt that are read at all
TOGETHER = 8  # prompts that are continued at once


@dataclass(frozen=True)
class GenerateOptions:
    """What the user asks for."""

    checkpoint: Path
    """A run's folder, or one in it that holds a model."""
    prompts: tuple[str, ...]
    sampling: Sampling
    context: int = 0
    """Tokens that the model sees at most; 0: as many as it was trained on."""
    interactive: bool = False
    log_probs: bool = False
    device: str = "auto"
    devices: int = 1
    """Over how many heads and vocabulary are cut."""


def prompt_of(data: bytes, name: str) -> str:
    """A prompt as text.

    Raises:
        UserError: it is no UTF-8, empty, or longer than any context.
    """
    if len(data) >= LONGEST:
        raise UserError(f"{name} has {LONGEST >> 20} MB or more; shorten it to what fits the model's context")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}; save or type it as UTF-8"
        ) from None
    if not text:
        raise UserError(f"{name} is empty; write what the text begins with")
    return text


def read_prompt(file: str) -> str:
    """A prompt from a file, or from standard input for "-"; a byte order mark before it is no text, as in a corpus.

    Raises:
        UserError: as ``prompt_of``.
        OSError: it cannot be read.
    """
    if file == "-":
        return prompt_of(sys.stdin.buffer.read(LONGEST).removeprefix(BOM), "the prompt on standard input")
    with open(file, "rb") as opened:
        return prompt_of(opened.read(LONGEST).removeprefix(BOM), f"the prompt in {shown(Path(file))}")


def run(request: GenerateOptions, command: Sequence[str]) -> None:
    """Continues the prompts here, or, for several devices on CPU, in workers that are started now.

    Args:
        request: what to do.
        command: script and arguments, with which workers are started.

    Raises:
        UserError: the checkpoint, a prompt or a setting does not fit.
        Interrupted: Ctrl-C.
    """
    settings = _settings_of(request)
    if settings.parallel.devices > 1 and request.interactive:
        raise UserError("--interactive is for one device; leave --devices out")
    check_workers(request.devices, "--devices")
    kind = choose_device(request.device, "--device")[0]
    here = dataclasses.replace(layout_of(settings, kind), table=MODEL_AXES)
    _check_devices(settings, here)
    check_layout(settings, here, placements)
    if here.devices > 1 and not is_worker():
        _start_workers(here.devices, kind, command)
        return
    try:
        _generate(request, settings, here)
    except KeyboardInterrupt:
        raise Interrupted("\nstopped") from None


def _settings_of(request: GenerateOptions) -> Settings:
    """The settings of the checkpoint's run, on the devices that are asked for.

    Raises:
        UserError: it is no such folder, or the context is longer than what the model was trained on.
    """
    settings, _ = load_settings(find_model(request.checkpoint) / CONFIG)
    trained = settings.data.seq_len
    if request.context < 0 or request.context == 1:
        raise UserError(
            f"--context {request.context}: a prompt and a token of text need 2 or more; leave it out for {trained:,}"
        )
    if request.context > trained:
        raise UserError(
            f"--context {request.context}: the model was trained on {trained} tokens and knows no longer distances; "
            f"set it to at most {trained}, or leave it out: a longer text goes on in a window of the last tokens"
        )
    parallel = ParallelConfig(model=request.devices, shard_weights="off")
    train = settings.train.model_copy(update={"compute_dtype": "auto"})  # the machine is another one
    return settings.model_copy(update={"parallel": parallel, "train": train})


def _check_devices(settings: Settings, here: Layout) -> None:
    model, devices = settings.model, here.devices
    fitting = (
        n for n in range(1, min(devices, model.heads + 1)) if model.heads % n == 0 and model.padded_vocab % n == 0
    )
    fits = max((n for n in fitting if partitions_for(n)), default=1)
    if not partitions_for(devices):
        raise UserError(
            f"--devices {devices}: MindSpore partitions for 1, 2, 4 or a multiple of 8 devices; set it to {fits}"
        )
    for what, count in (("heads", model.heads), ("rows of the embedding", model.padded_vocab)):
        if count % devices:
            raise UserError(f"--devices {devices}: the model's {count:,} {what} cannot be cut so; set it to {fits}")


def _start_workers(devices: int, kind: str, command: Sequence[str]) -> None:
    if kind != "CPU":
        raise UserError(
            f"--devices {devices}: on {kind}, start a worker for each: msrun --worker_num={devices} "
            f"--local_worker_num=<devices of this machine> --join=True {' '.join(command)}"
        )
    build.extension()
    sys.stdout.reconfigure(encoding="utf-8")
    with tempfile.TemporaryDirectory() as logs:
        try:
            Workers(devices, command, Path(logs) / "workers").join()
        except Interrupted:
            raise Interrupted("\nstopped") from None


def _generate(request: GenerateOptions, settings: Settings, here: Layout) -> None:
    tokenizer = load_tokenizer(request.checkpoint)
    if note := padding_note(settings.model, tokenizer.vocab_size, tokenizer.model_file):
        print(f"note: {note}", file=sys.stderr)
    open_device(request.device, "--device")
    rank = join_workers(here.devices, here.target)
    with layout(here):
        palm = load(request.checkpoint)
        if cpu_step.wanted(palm.config) and not cpu_step.usable(palm.config):
            print("note: there is no g++ that works here; MindSpore's own ops are used, and slower", file=sys.stderr)
        together = min(TOGETHER, max(1, len(request.prompts)))
        generator = Generator(
            palm, tokenizer, request.context or settings.data.seq_len, together, str(find_model(request.checkpoint))
        )
        terminal = Terminal(generator, request.sampling, request.log_probs, rank)
        if request.interactive:
            terminal.converse(request.prompts)
        elif len(request.prompts) == 1:
            terminal.write(request.prompts[0])
        else:
            terminal.write_all(request.prompts)


class Terminal:
    """Shows what a generator writes, on standard output; what it took, on standard error.

    Args:
        generator: what generates.
        sampling: the settings.
        log_probs: whether every token is listed as well.
        rank: only the first worker speaks.
    """

    def __init__(self, generator: Generator, sampling: Sampling, log_probs: bool, rank: int = 0) -> None:
        self._generator, self._sampling, self._log_probs = generator, sampling, log_probs
        self._status = not is_worker()  # what a worker says all goes to one place
        if rank > 0:
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
        sys.stdout.reconfigure(encoding="utf-8")

    def write(self, prompt: str, seen: Prompt | None = None) -> list[int]:
        """A prompt and, as it comes, its continuation; returns the tokens after the border of the two.

        Args:
            prompt: is shown.
            seen: what the model sees; the prompt if None.
        """
        start, stream = time.perf_counter(), self._generator.stream(seen or prompt, self._sampling)
        sys.stdout.write(prompt)
        sys.stdout.flush()
        generation = None
        while generation is None:
            try:
                sys.stdout.write(next(stream))
                sys.stdout.flush()
            except StopIteration as end:
                generation = end.value
        print(flush=True)
        self._report([generation], time.perf_counter() - start)
        return generation.opening + generation.token_ids

    def write_all(self, prompts: Sequence[str]) -> None:
        """Several prompts with their continuations."""
        start = time.perf_counter()
        generations = self._generator(prompts, self._sampling)
        seconds = time.perf_counter() - start
        for number, (prompt, generation) in enumerate(zip(prompts, generations, strict=True), 1):
            print(f"--- {number}\n{prompt}{generation.text}", flush=True)
        self._report(generations, seconds)

    def converse(self, prompts: Sequence[str]) -> None:
        """Continues what the user types after the text so far, until the end of input; an empty line just continues.

        What no longer fits the context is forgotten from the beginning.
        """
        tokenizer, context = self._generator.tokenizer, self._generator.context
        print("type how the text goes on, then Enter; Enter alone: the model goes on; Ctrl-D ends", file=sys.stderr)
        tokens, waiting = [tokenizer.eod], list(prompts)
        while True:
            try:
                line = waiting.pop(0) if waiting else input("> ")
                new = at_border(tokenizer, prompt_of(os.fsencode(line), "the line") if line else "")
                count = len(new.context) + len(tokenizer.encode(new.white_space))
                if count >= context // 2:
                    raise UserError(f"the line has {count:,} tokens; at most {context // 2 - 1:,} fit")
            except EOFError:
                print(file=sys.stderr)
                return
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                continue
            tokens += new.context
            if len(tokens) + count - len(new.context) >= context:
                tokens = tokens[-(context // 2) :]
            tokens += self.write(line, Prompt(tuple(tokens), new.white_space))
            tokens = tokens if len(tokens) < context else tokens[-(context // 2) :]

    def _report(self, generations: Sequence[Generation], seconds: float) -> None:
        if self._log_probs:
            for generation in generations:
                print("\nlog-probability, token")
                for token, log_prob in zip(generation.token_ids, generation.log_probs, strict=True):
                    print(f"{log_prob:9.4f}  {self._generator.tokenizer.decode([token])!r}")
        count = sum(len(generation.token_ids) for generation in generations)
        ends = ", ".join(generation.finished for generation in generations)
        if self._status:
            print(f"[{count} tokens in {seconds:.2f} s, compilation included; ended by {ends}]", file=sys.stderr)

"""``palm chat``: a conversation with a trained model in a terminal, in the format that the model was trained on.

A model that was fine-tuned on pairs knows one format: a prompt, and its target up to [eod] (``data.pairs``). So each
message is a prompt by itself, and earlier ones are not repeated: no pair had a conversation in it. Any other model
continues a text, which the user and the model write in turns.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mindspore_palm.config import Settings
from mindspore_palm.data.prompt import Prompt
from mindspore_palm.data.prompt_file import prompt_of
from mindspore_palm.errors import UserError
from mindspore_palm.generate.command import open_generator
from mindspore_palm.generate.generator import Generator
from mindspore_palm.generate.sampling import Sampling
from mindspore_palm.generate.transcript import Transcript
from mindspore_palm.launch import stop
from mindspore_palm.launch.interrupts import Interrupts

PAIRS, TEXT = "pairs", "text"
SLOT = "{}"  # in a template: what the user types
COMMANDS = {"/reset": "forget the conversation", "/help": "show this"}
HELP = "\n".join(
    [
        *(f"{name:<8} {effect}" for name, effect in COMMANDS.items()),
        "Ctrl-C   end an answer",
        "Ctrl-D   end the chat",
    ]
)
ABOUT = {
    PAIRS: "The model was fine-tuned on pairs: each message is a prompt by itself, and earlier ones are not seen.",
    TEXT: "The model continues the text that you write in turns; Enter alone lets it go on.",
}


@dataclass(frozen=True)
class ChatOptions:
    """The options of the command."""

    model: Path
    """A run's folder, or a folder in it that holds a model."""
    sampling: Sampling
    style: str
    """pairs, text, or auto: that of the model's training."""
    template: str
    """The prompt of a message, with {} in its place; empty: the message itself."""
    context: int
    """Maximum number of tokens that the model sees; 0: as many as it was trained on."""
    device: str


def run(options: ChatOptions, interrupts: Interrupts) -> None:
    """Talks until the end of input.

    Raises:
        UserError: the model or an option does not fit.
    """
    with open_generator(options.model, options.device, options.context, 1) as (generator, settings):
        style = style_of(settings) if options.style == "auto" else options.style
        if options.template and style == TEXT:
            raise UserError("--template is for models that were fine-tuned on pairs; leave it out")
        Chat(generator, options.sampling, style, options.template, interrupts).talk()


def style_of(settings: Settings) -> str:
    """The format of a model, by how it was trained."""
    return PAIRS if settings.finetune.checkpoint else TEXT


class Chat:
    """A conversation on standard input and output; hints go to standard error.

    Args:
        generator: the model.
        sampling: the settings. The seed changes with every answer.
        style: pairs or text.
        template: of a prompt, for pairs.
        interrupts: Ctrl-C.
    """

    def __init__(
        self, generator: Generator, sampling: Sampling, style: str, template: str, interrupts: Interrupts
    ) -> None:
        self._generator, self._sampling, self._style, self._template = generator, sampling, style, template
        self._interrupts = interrupts
        self._transcript, self._answers = Transcript(generator.tokenizer, generator.context), 0
        self._terminal = sys.stdin.isatty() and sys.stdout.isatty()
        for stream in (sys.stdin, sys.stdout):
            cast(io.TextIOWrapper, stream).reconfigure(encoding="utf-8", errors="surrogateescape")

    def talk(self) -> None:
        """Answers lines until the end of input."""
        _hint(f"{ABOUT[self._style]} /help shows commands.")
        with self._interrupts.have(lambda: stop.write(2, "\nCtrl-D ends the chat\n> ")):
            while True:
                try:
                    line = self._read_line()
                except EOFError:
                    if self._terminal:
                        print(file=sys.stderr)
                    return
                try:
                    self._obey(line) if line.startswith("/") else self._answer(line)
                except UserError as error:
                    _hint(f"error: {error}")

    def _read_line(self) -> str:
        """A line without its end; of a terminal, with a prompt and editing."""
        if self._terminal:
            import readline  # noqa: F401 - input() edits lines with it

            return input("> ")
        sys.stdout.flush()
        if not (line := sys.stdin.readline()):
            raise EOFError
        return line.removesuffix("\n")

    def _obey(self, line: str) -> None:
        command = line.strip()
        if command == "/help":
            _hint(HELP)
        elif command == "/reset":
            self._transcript = Transcript(self._generator.tokenizer, self._generator.context)
            _hint("forgotten")
        else:
            raise UserError(f"there is no command {command}; there are {', '.join(COMMANDS)}")

    def _answer(self, line: str) -> None:
        """Streams the answer to a line; Ctrl-C ends it, and the chat goes on."""
        if not line and self._style == PAIRS:
            return
        prompt = self._prompt(line)
        sequence = self._generator.begin(prompt, self._sampling, self._answers)
        self._answers += 1
        interrupted = threading.Event()
        with self._interrupts.have(interrupted.set):
            for _ in self._generator.run([sequence]):
                sys.stdout.write(sequence.piece())
                sys.stdout.flush()
                if interrupted.is_set():
                    break
        print(flush=True)
        if self._style == TEXT:
            self._transcript.add_tokens(sequence.opening + sequence.token_ids)

    def _prompt(self, line: str) -> Prompt:
        text = prompt_of(os.fsencode(line), "the line") if line else ""
        if self._style == TEXT:
            return self._transcript.add_text(text)
        return self._generator.read_prompt(self._template.replace(SLOT, text) if self._template else text, "the line")


def _hint(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

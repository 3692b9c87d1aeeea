"""Prompts as users give them: as an argument, in a file, or on standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from mindspore_palm.data.corpus import BOM
from mindspore_palm.data.files import printable
from mindspore_palm.errors import UserError

MAX_BYTES = 1 << 26  # of a prompt


def prompt_of(data: bytes, name: str) -> str:
    """A prompt as text.

    Raises:
        UserError: it is not UTF-8, empty, or longer than any context.
    """
    if len(data) >= MAX_BYTES:
        raise UserError(f"{name} has {MAX_BYTES >> 20} MB or more; shorten it to what fits the model's context")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}; save or type it as UTF-8"
        ) from None
    if not text:
        raise UserError(f"{name} is empty; write the beginning of a text")
    return text


def read_prompt(file: str) -> str:
    """A prompt from a file, or from standard input for "-". A byte order mark is dropped, as in a corpus.

    Raises:
        UserError: as ``prompt_of``.
        OSError: it cannot be read.
    """
    if file == "-":
        return prompt_of(sys.stdin.buffer.read(MAX_BYTES).removeprefix(BOM), "the prompt on standard input")
    with open(file, "rb") as opened:
        return prompt_of(opened.read(MAX_BYTES).removeprefix(BOM), f"the prompt in {printable(Path(file))}")

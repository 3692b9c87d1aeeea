"""The one exception for what a user can fix, and how a command ends on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

READER_GONE = 141  # 128 + SIGPIPE: what a shell reports of a command whose reader went away
STOPPED = 130  # 128 + SIGINT
OVERWRITES = "MINDSPORE_PALM_OVERWRITES"  # tells a process that the user's command, not its own, has --overwrite


class UserError(Exception):
    """Bad input, said in one or two clear sentences: what, where, what to do. Commands exit with 2 on it."""


class Interrupted(Exception):
    """The user stopped the run and it was saved; the text says where. Commands then exit with 130."""


def not_finite(model: str, text: str) -> UserError:
    """What to say of a model whose logits are NaN or infinite.

    Args:
        model: its name: a folder, or "the model".
        text: what it was given.
    """
    return UserError(
        f"{model}: the logits for {text} are not finite (NaN or infinity), so nothing can be said of it; "
        "the weights are of a training that failed: take an earlier checkpoint"
    )


def run_command(command: Callable[[], None]) -> int:
    """Runs a command and turns what a user can fix into its sentence on standard error.

    Returns:
        The exit code: 0 if the command is done, 2 for bad input or a full or unwritable disk, 130 for an interrupted
        run, 141 if the reader of its results went away before it had them (``| head``).
    """
    for stream in (sys.stdout, sys.stderr):  # the name of a file may be no text at all; printing it is no reason to die
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(str(stop), file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("interrupted before training began; what was prepared is kept", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
        return 2
    return 0


def same_command() -> str:
    """The words for the command that resumes this run: with ``--overwrite``, it would delete the run instead."""
    overwrites = "--overwrite" in sys.argv or OVERWRITES in os.environ
    return "the same command without --overwrite" if overwrites else "the same command"

"""The exception for errors that a user can fix, and how a command ends on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

READER_GONE = 141  # 128 + SIGPIPE: the exit code in a shell of a command whose reader went away
STOPPED = 130  # 128 + SIGINT
OVERWRITES = "MINDSPORE_PALM_OVERWRITES"  # set in a worker if the user's command, not its own, has --overwrite


class UserError(Exception):
    """Bad input. The message says in one or two sentences what, where and how to fix it. Commands exit with 2."""


class Interrupted(Exception):
    """The user stopped the run and it was saved; the message says where. Commands exit with 130."""


def not_finite(model: str, text: str) -> UserError:
    """Error for a model whose logits are NaN or infinite.

    Args:
        model: name of the model: a folder, or "the model".
        text: name of the text that the logits are for.
    """
    return UserError(
        f"{model}: the logits for {text} are not finite (NaN or infinity), so they mean nothing; "
        "the weights are from a training run that failed: use an earlier checkpoint"
    )


def run_command(command: Callable[[], None]) -> int:
    """Runs a command and prints an error that the user can fix as one message on standard error.

    Returns:
        The exit code: 0 for success, 2 for bad input or a full or unwritable disk, 130 for an interrupted run, 141 if
        the reader of its results went away before the end (``| head``).
    """
    for stream in (sys.stdout, sys.stderr):  # printing a file name that is not valid text must not raise
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
    """Phrase for the command that resumes this run: with ``--overwrite``, it would delete the run instead."""
    overwrites = "--overwrite" in sys.argv or OVERWRITES in os.environ
    return "the same command without --overwrite" if overwrites else "the same command"

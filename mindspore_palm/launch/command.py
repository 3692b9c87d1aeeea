"""Lifetime of a command's process: output streams that cannot end it, signal handling, exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from mindspore_palm import console, preflight
from mindspore_palm.errors import UserError, run_command
from mindspore_palm.launch import stop, supervisor


def run_process(main: Callable[[], None], *, trains: bool = False, results: bool = True) -> int:
    """Runs a command in a process of its own; returns its exit code.

    Args:
        main: the command.
        trains: whether it trains, and so saves before it stops.
        results: whether its output is its result, so that the command fails if it cannot be written; else the output is
            only a record.
    """
    console.protect(results)

    def start() -> None:
        preflight.check()
        if not trains:
            stop.unblock()
            return
        try:
            supervisor.supervise()
        except OSError as error:
            raise UserError(f"the process that trains cannot be started: {error.strerror}; see ulimit -a") from None

    if code := run_command(start):
        return console.flush(code)
    limited = False

    def command() -> None:
        nonlocal limited
        try:
            main()
        except (MemoryError, RuntimeError, ImportError) as error:
            if explanation := preflight.explain(error):
                limited = True
                raise UserError(explanation) from None
            raise

    code = run_command(command)
    stop.ignore_signals()
    code = console.flush(code)
    if limited or _partly_imported():  # MindSpore would abort when it is unloaded
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)
    return code


def _partly_imported() -> bool:
    """Whether the import of MindSpore failed, which leaves its C++ part loaded."""
    return "mindspore" not in sys.modules and any(name.startswith("mindspore.") for name in sys.modules)

"""A command's process from its first line to its last: streams that never end it, signals that are heard, exit code."""

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
        trains: whether it trains: then it saves before it stops.
        results: whether it exists for what it prints, and fails if that cannot be written; else that is a record.
    """
    console.protect(results)

    def begin() -> None:
        preflight.check()
        if not trains:
            stop.release()
            return
        try:
            supervisor.supervise()
        except OSError as error:
            raise UserError(f"the process that trains cannot be started: {error.strerror}; see ulimit -a") from None

    if code := run_command(begin):
        return console.flush(code)
    limited = False

    def command() -> None:
        nonlocal limited
        try:
            main()
        except (MemoryError, RuntimeError, ImportError) as error:
            if said := preflight.explain(error):
                limited = True
                raise UserError(said) from None
            raise

    code = run_command(command)
    stop.deafen()
    code = console.flush(code)
    if limited or _imported_in_part():  # MindSpore would abort where it is unloaded
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)
    return code


def _imported_in_part() -> bool:
    """Whether the import of MindSpore ended in an error, which leaves its C++ part behind."""
    return "mindspore" not in sys.modules and any(name.startswith("mindspore.") for name in sys.modules)

"""A command's process from its first line to its last: streams that never end it, signals that are heard, exit code."""

from __future__ import annotations

from collections.abc import Callable

from mindspore_palm import console, stop, supervisor
from mindspore_palm.errors import run_command


def run_process(main: Callable[[], None], *, trains: bool = False, results: bool = True) -> int:
    """Runs a command in a process of its own; returns its exit code.

    Args:
        main: the command.
        trains: whether it trains: then it saves before it stops.
        results: whether it exists for what it prints, and fails if that cannot be written; else that is a record.
    """
    console.protect(results)
    if trains:
        supervisor.supervise()
    else:
        stop.release()
    code = run_command(main)
    stop.deafen()
    return console.flush(code)

"""``palm train``: trains in this process, in a supervised child process, or in one worker per device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mindspore_palm.config import Settings
from mindspore_palm.console import say
from mindspore_palm.cost.memory import check_memory
from mindspore_palm.errors import Interrupted, UserError
from mindspore_palm.file_names import WORKERS
from mindspore_palm.launch.process import ChildProcess, exit_with_launcher, with_restarts
from mindspore_palm.launch.supervisor import LAUNCHER
from mindspore_palm.launch.workers import Workers, next_attempt
from mindspore_palm.parallel.context import choose_device
from mindspore_palm.parallel.host import build
from mindspore_palm.parallel.workers import is_worker
from mindspore_palm.train.continuation import StartOptions
from mindspore_palm.train.finetune import open_data
from mindspore_palm.train.loop import train
from mindspore_palm.train.run_folder import RunFolderState, check_run_folder, finished_message, locked_run_folder
from mindspore_palm.train.start import check_settings


def run(settings: Settings, start: StartOptions, command: Sequence[str]) -> None:
    """Trains in this process, in a child process that is restarted, or in workers.

    On several devices, this process is one of the workers that msrun started, or starts them itself on the CPU.

    Args:
        settings: all of them.
        start: how the run starts.
        command: script and arguments, to start workers with.

    Raises:
        UserError, Interrupted: as ``train``.
    """
    devices, restarts = settings.parallel.devices, start.max_restarts
    exit_with_launcher()
    if is_worker():
        try:
            train(settings, start)
        except Interrupted as stopped:  # MS-49: everything is saved, and msrun treats any other exit code as a failure
            print(stopped, flush=True)
    elif devices == 1 and (not restarts or LAUNCHER in os.environ):
        train(settings, start)
    elif devices == 1:
        check_memory(settings, check_settings(settings, choose_device(settings.train.device)[0], start))
        with locked_run_folder(Path(settings.train.output)):
            with_restarts(lambda again, flags: ChildProcess(again, flags).join(), command, restarts)
    elif (device := choose_device(settings.train.device)[0]) != "CPU":
        raise UserError(
            f"parallel asks for {devices} devices; on {device}, start a worker for each: msrun --worker_num={devices} "
            f"--local_worker_num=<devices of this machine> --join=True {' '.join(command)}"
        )
    else:
        check_memory(settings, check_settings(settings, "CPU", start))
        folder = Path(settings.train.output)
        with locked_run_folder(folder):  # until the workers end; they do not lock it again
            if check_run_folder(settings, start) is RunFolderState.FINISHED:
                say(finished_message(settings))
                return
            build.extension()  # built before the workers start, so that errors are reported once
            open_data(settings, start.overwrite)
            with_restarts(
                lambda again, flags: Workers(devices, again, next_attempt(folder / WORKERS), flags).join(),
                command,
                restarts,
            )

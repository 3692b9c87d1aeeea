"""``--profile FROM:TO``: some steps under MindSpore's profiler, as a hook of the training loop.

The profiler only notes when each op starts and ends. The graphs, and so the bits of weights and losses, stay the same.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import mindspore as ms

from mindspore_palm.console import say
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import PROFILE, PROFILE_REPORT, TRACE
from mindspore_palm.files import write_atomically
from mindspore_palm.graph_cache.store import SWITCH
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.train.hooks import StepInfo
from mindspore_palm.train.log.op_times import read_op_times
from mindspore_palm.train.log.step_profile import StepProfile, StepTimes, describe_profile, write_trace
from mindspore_palm.train.profile_options import ProfileOptions
from mindspore_palm.train.run import Run


@contextmanager
def compiled_graphs(options: ProfileOptions | None) -> Iterator[None]:
    """Compiles graphs instead of loading kept ones, whose ops have lost the names of their Cells."""
    before = os.environ.get(SWITCH)
    if options:
        os.environ[SWITCH] = "off"
    try:
        yield
    finally:
        if options and before is None:
            del os.environ[SWITCH]
        elif options:
            os.environ[SWITCH] = str(before)


class Profiler:
    """A hook that profiles steps; it starts after the step before the first one. A failure does not end the run."""

    def __init__(self, options: ProfileOptions) -> None:
        self._options = options
        self._steps: list[StepTimes] = []
        self._before: list[float] = []
        self._profiler: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._offset = 0.0  # from time.perf_counter to seconds since 1970

    def __call__(self, run: Run, info: StepInfo) -> None:
        try:
            self._observe(run, info)
        except Exception as error:  # any error: a profile does not end the run
            self._profiler = None
            reason = getattr(error, "strerror", None) or str(error) or repr(error)
            say(f"{self._options.argument}: no profile, as {reason}; training continues")

    def _observe(self, run: Run, info: StepInfo) -> None:
        if self._profiler is not None:
            start, read, end = (self._offset + seconds for seconds in (info.start, info.read, info.end))
            self._steps.append(StepTimes(info.step, start, read, end))
            if info.step == self._options.last or info.is_final:
                self._finish(run, time.time())
        elif info.step == self._options.first - 1 and not info.is_final:
            self._start()
        elif info.step < self._options.first:
            self._before.append(info.end - info.start)

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mindspore_palm_profile_")
        handler = ms.profiler.tensorboard_trace_handler(self._folder.name, analyse_flag=False)
        activities = [ms.profiler.ProfilerActivity.CPU]
        self._profiler = ms.profiler.profile(activities=activities, start_profile=False, on_trace_ready=handler)
        self._profiler.start()
        self._offset = time.time() - time.perf_counter()

    def _finish(self, run: Run, now: float) -> None:
        profiler, folder, self._profiler = self._profiler, self._folder, None
        profiler.stop()
        with folder or nullcontext():
            runs = read_op_times(Path(folder.name if folder else ""))
        vocab = run.settings.model.padded_vocab // current_layout().shards("vocab")
        profile = StepProfile(self._steps, runs, now, vocab, self._before[1:])  # the first one has compiled
        options, planned, machine = self._options, None, ""
        if options.planner:
            try:
                planned, machine = options.planner(run.settings, run.peak / current_layout().devices)
            except UserError as error:
                say(f"{options.argument}: without a plan to compare with: {error}")
        text = describe_profile(profile, planned, machine)
        home = run.folder / PROFILE
        home.mkdir(exist_ok=True)
        write_trace(home / TRACE, profile)
        with write_atomically(home / PROFILE_REPORT) as file:
            file.write(f"{text}\n".encode())
        which = "" if current_layout().devices == 1 else " of the first worker"
        say(f"{text}\n\nthe profile{which} is in {home}: {TRACE} opens in ui.perfetto.dev or chrome://tracing")

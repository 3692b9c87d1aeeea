"""Ctrl-C as an event, for commands that go on after it.

MS-68: every call of a graph puts MindSpore's handler of SIGINT in the place of Python's, and that one ends the process
by SIGTERM. So the signal is blocked in all threads, and a thread of its own waits for it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mindspore_palm.errors import STOPPED
from mindspore_palm.launch import stop


def end_process() -> None:
    """Ends the process, as a command that has nothing to save."""
    stop.write(2, "\nstopped\n")
    os._exit(STOPPED)


class Interrupts:
    """The effect of Ctrl-C; at first, it ends the process."""

    def __init__(self) -> None:
        self._effect = end_process

    def listen(self) -> None:
        """Takes all of them from here on. It must be called before a library starts threads, which inherit the mask."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        threading.Thread(target=self._wait, name="interrupts", daemon=True).start()

    @contextmanager
    def have(self, effect: Callable[[], None]) -> Iterator[None]:
        """Gives them another effect inside; it is called in the thread that waits for them."""
        before, self._effect = self._effect, effect
        try:
            yield
        finally:
            self._effect = before

    def _wait(self) -> None:
        while True:
            signal.sigwait({signal.SIGINT})
            self._effect()

"""Signals of a process that a test has started."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path


def blocks_interrupts(pid):
    """Whether it blocks Ctrl-C and nothing else; between fork and exec, a process blocks everything."""
    blocked = Path(f"/proc/{pid}/status").read_text().partition("SigBlk:")[2].split()[0]
    return int(blocked, 16) == 1 << (signal.SIGINT - 1)


def interrupted_at_start(line, **options):
    """Exit code and output of a command that gets Ctrl-C as soon as it listens for it, while it loads."""
    pipe = subprocess.PIPE
    with subprocess.Popen(line, stdout=pipe, stderr=pipe, **options) as process:
        deadline = time.monotonic() + 60
        while not blocks_interrupts(process.pid):
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err

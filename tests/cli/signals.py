"""Signals of a process that a test has started."""

from __future__ import annotations

import signal
from pathlib import Path


def blocks_interrupts(pid):
    """Whether it blocks Ctrl-C and nothing else; between fork and exec, a process blocks everything."""
    blocked = Path(f"/proc/{pid}/status").read_text().partition("SigBlk:")[2].split()[0]
    return int(blocked, 16) == 1 << (signal.SIGINT - 1)

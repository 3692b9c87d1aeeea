"""Compiles in a process of its own, as libtpu gives no memory back, with bounded time."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tpu.case import Case

MINUTES = 15  # 540B needs one on two idle cores


@dataclass(frozen=True)
class Compiled:
    """What XLA says about a compiled step, in bytes a chip."""

    argument_bytes: int
    """Weights, optimizer state and tokens; padded as they lie on a chip."""
    output_bytes: int
    """Weights and optimizer state after the step."""
    alias_bytes: int
    """Of the output: what takes the place of an argument."""
    temp_bytes: int
    """The heap that everything else lives in."""
    peak_bytes: int
    """Largest sum of what is live at a time, arguments included."""
    flops: float
    """XLA's own count; a loop's body once."""
    seconds: float
    """Of tracing and compiling."""
    program: str = dataclasses.field(repr=False)
    """Text of the compiled program."""

    @property
    def bytes(self) -> int:
        """What the step takes of a chip's memory."""
        return self.argument_bytes + self.output_bytes - self.alias_bytes + self.temp_bytes


@cache
def compiled(case: Case) -> Compiled:
    """Compiles a case.

    Raises:
        RuntimeError: XLA refused it, in its words; as when it does not fit a chip's memory.
        subprocess.TimeoutExpired: it took too long, and was stopped.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program.txt"
        script = Path(__file__).with_name("compile.py")
        child = subprocess.run(
            [sys.executable, str(script), json.dumps(dataclasses.asdict(case)), "--program", str(program)],
            capture_output=True,
            text=True,
            timeout=60 * MINUTES,
            cwd=folder,
        )
        if child.returncode:
            said = [line for line in child.stderr.splitlines() if "Error: " in line] or child.stderr.splitlines()
            raise RuntimeError(said[-1] if said else f"compile.py ended with exit code {child.returncode}")
        return Compiled(**json.loads(child.stdout.splitlines()[-1]), program=program.read_text())

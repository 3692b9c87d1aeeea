"""How the command of this process was called: ``palm train``, or a script such as ``run/train.py``.

Messages and help name it as the user did, and workers repeat it.
"""

from __future__ import annotations

import sys
from pathlib import Path

ENTRY = Path(__file__).with_name("__main__.py")

_command = ""  # of palm; empty: a script


def called_palm(command: str) -> None:
    """Records that ``palm COMMAND`` was called, and leaves its arguments alone in ``sys.argv``, as a script's are."""
    global _command
    _command = command
    sys.argv = [sys.argv[0], *sys.argv[2:]]


def name() -> str:
    """The command without its arguments: "palm train", or "python run/train.py"."""
    return f"palm {_command}" if _command else f"python {sys.argv[0]}"


def script_and_arguments() -> list[str]:
    """Script and arguments that repeat this command in another process, after the name of a Python interpreter."""
    return [str(ENTRY), _command, *sys.argv[1:]] if _command else list(sys.argv)

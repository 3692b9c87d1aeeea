"""What a run says while a progress bar stands below."""

from __future__ import annotations

import os
import sys

from tqdm import tqdm

from mindspore_palm.parallel.context import this_rank


def say(text: str) -> None:
    """Prints above the progress bar, on rank 0. A reader that went away (``| head``) does not end the run."""
    if this_rank() != 0:
        return
    try:
        tqdm.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

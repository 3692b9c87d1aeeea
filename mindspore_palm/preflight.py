"""What a command looks at around it before it imports anything large, and the sentences for what it finds too late.

What a process may take is tried, not computed: limits come from ulimit, from control groups and from the system.
"""

from __future__ import annotations

import mmap
import os
import re
import threading
import warnings

from mindspore_palm.errors import UserError

MEMORY = 512 << 20  # bytes: less than any command takes, and enough for OpenBLAS, which otherwise tries forever
GRAPH_THREADS = 16  # that MindSpore starts for a graph, at least; without them it aborts
# MS-34: there is no type for this error
NO_MEMORY = re.compile(
    r"(?i)out of memory|memory (is)?(n't| ?not) enough|bad_alloc|(malloc|alloc\w*)( \w+)* (memory )?fail"
    r"|cannot allocate memory|failed to map segment"
)
NO_THREADS = re.compile(r"(?i)resource temporarily unavailable|can't start new thread|pthread_create failed")
FEW_THREADS = (
    "this user or container may not start as many threads as are needed (ulimit -u, pids.max); raise the limit"
)


def check() -> None:
    """Makes sure that the process can work here.

    PYTHONWARNINGS=error is for a program's own tests. MindSpore and other packages warn of things that users cannot
    fix, some of them while the process ends, so warnings stay warnings here.

    Raises:
        UserError: the working folder is gone, files would be closed to their owner, memory or threads are too few, or a
            variable of tqdm is no number.
    """
    if any(action == "error" for action, *_ in warnings.filters):
        warnings.simplefilter("default")
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the working folder was deleted; change into a folder that is there (cd)") from None
    _check_progress()
    mask = os.umask(0o077)
    os.umask(mask)
    if mask & 0o700:
        raise UserError(f"umask {mask:04o} takes new files from their owner; set it to 0022 or 0077")
    try:
        mmap.mmap(-1, MEMORY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        raise UserError(
            f"this process may not take {MEMORY >> 20} MB of memory (ulimit -v, ulimit -d); raise the limit"
        ) from None
    check_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def _check_progress() -> None:
    """tqdm reads its defaults from variables, and ends the process that imports it if one of them is no number."""
    names = [name for name in os.environ if name.startswith("TQDM_")]
    if not names:
        return
    try:
        import tqdm  # noqa: F401 - only then, as it takes time
    except ValueError as error:
        raise UserError(f"{' or '.join(names)} is not what tqdm wants ({error}); unset it") from None


def check_threads(count: int) -> None:
    """Makes sure that so many threads can be started: OpenBLAS and MindSpore end the process where they cannot.

    Raises:
        UserError: they cannot.
    """
    enough, threads = threading.Event(), []
    try:
        for _ in range(count):
            thread = threading.Thread(target=enough.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        raise UserError(FEW_THREADS) from None
    finally:
        enough.set()
        for thread in threads:
            thread.join()


def explain(error: Exception) -> str:
    """The sentence for an error of C++ that means a limit of this process; empty for any other."""
    said = str(error)
    if NO_THREADS.search(said):
        return FEW_THREADS
    if isinstance(error, MemoryError) or NO_MEMORY.search(said):
        return "the memory that this process may take did not suffice (ulimit -v, the container's limit); raise it"
    return ""

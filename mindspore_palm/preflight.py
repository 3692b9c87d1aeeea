"""Preflight checks, before a command imports anything large, and messages for limits that it hits later.

Limits come from ulimit, control groups and the system. They are tested by allocating, not computed.
"""

from __future__ import annotations

import mmap
import os
import re
import signal
import sys
import threading
import warnings

from mindspore_palm.errors import UserError

MEMORY = 512 << 20  # bytes: less than any command needs, and enough for OpenBLAS, which otherwise retries forever
GRAPH_THREADS = 16  # least number of threads that MindSpore starts for a graph; without them it aborts
# MS-34: the error has no type of its own
NO_MEMORY = re.compile(
    r"(?i)out of memory|memory (is)?(n't| ?not) enough|bad_alloc|(malloc|alloc\w*)( \w+)* (memory )?fail"
    r"|cannot allocate memory|failed to map segment"
)
NO_THREADS = re.compile(r"(?i)resource temporarily unavailable|can't start new thread|pthread_create failed")
LOG_VARIABLES = {
    "GLOG_v": ("[0-4]", "0 to 4"),
    "GLOG_stderrthreshold": ("[0-4]", "0 to 4"),
    "GLOG_logtostderr": ("[01]", "0 or 1"),
    "logger_maxBytes": (r"\d+", "a number of bytes"),
    "logger_backupCount": (r"\d+", "a number of files"),
}
"""Values of MindSpore's log variables: the pattern, and in words. Importing MindSpore fails on any other."""
FEW_THREADS = (
    "this user or container may not start as many threads as are needed (ulimit -u, pids.max); raise the limit"
)


def check() -> None:
    """Checks that the process can run here.

    PYTHONWARNINGS=error is meant for a program's own tests. MindSpore and other packages emit warnings that users
    cannot fix, some at exit, so warnings stay warnings here.

    Raises:
        UserError: the working folder was deleted, the umask denies new files to their owner, there is too little memory
            or too few threads, or an environment variable of tqdm or of MindSpore's log is invalid.
    """
    if any(action == "error" for action, *_ in warnings.filters):
        warnings.simplefilter("default")
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the working folder was deleted; change to one that exists (cd)") from None
    _check_progress()
    _check_log()
    mask = os.umask(0o077)
    os.umask(mask)
    if mask & 0o700:
        raise UserError(f"umask {mask:04o} denies new files to their owner; set it to 0022 or 0077")
    try:
        mmap.mmap(-1, MEMORY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        raise UserError(
            f"this process may not take {MEMORY >> 20} MB of memory (ulimit -v, ulimit -d); raise the limit"
        ) from None
    check_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def _check_progress() -> None:
    """Checks the TQDM_* variables: importing tqdm fails if one of its defaults there is invalid."""
    names = [name for name in os.environ if name.startswith("TQDM_")]
    if not names:
        return
    try:
        import tqdm  # noqa: F401 - imported only if needed, as it takes time
    except ValueError as error:
        raise UserError(f"{' or '.join(names)} is not a value that tqdm accepts ({error}); unset it") from None


def _check_log() -> None:
    """Checks the variables of MindSpore's log."""
    for name, (pattern, values) in LOG_VARIABLES.items():
        value = os.environ.get(name)
        if value and not re.fullmatch(pattern, value):
            raise UserError(f"{name} = {value} is not a value that MindSpore accepts; set it to {values}, or unset it")
    to_stderr, folder = (os.environ.get(f"GLOG_{name}") for name in ("logtostderr", "log_dir"))
    if to_stderr == "0" and not folder:
        raise UserError("GLOG_logtostderr = 0 wants log files, and GLOG_log_dir names no folder for them; set both")


def check_threads(count: int) -> None:
    """Checks that ``count`` threads can be started: if not, OpenBLAS and MindSpore would end the process.

    Raises:
        UserError: the threads cannot be started.
    """
    enough, threads = threading.Event(), []
    # The system ends a thread some time after it was joined. Until then it would take, and die of, a signal that the
    # main thread has blocked.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        for _ in range(count):
            thread = threading.Thread(target=enough.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        raise UserError(FEW_THREADS) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        enough.set()
        for thread in threads:
            thread.join()


def explain(error: Exception) -> str:
    """Message for an error that is not of the code: a limit of this process was hit, or a package is missing.

    It is empty for any other error.
    """
    message = str(error)
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("mindspore_palm"):
        return (
            f"the package {error.name.partition('.')[0]} is not installed for {sys.executable}: use the Python of the "
            "environment that has it, or pip install -r requirements.txt"
        )
    if NO_THREADS.search(message):
        return FEW_THREADS
    if isinstance(error, MemoryError) or NO_MEMORY.search(message):
        return "this process ran out of the memory that it may use (ulimit -v, the container's limit); raise the limit"
    return ""

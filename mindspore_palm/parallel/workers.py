"""Workers as the environment describes them: how many msrun has started, and whether that is consistent."""

from __future__ import annotations

import os

from mindspore_palm.errors import UserError

WORKER = "MS_WORKER_NUM"  # set by msrun: the number of workers
ROLE = "MS_ROLE"  # set by msrun: worker or scheduler
ROLES = ("MS_WORKER", "MS_SCHED")
SIZE, RANK = "RANK_SIZE", "RANK_ID"
MESH = "parallel.stages x parallel.pods x parallel.data x parallel.model"


def is_worker() -> bool:
    """Whether msrun started this process."""
    return bool(os.environ.get(WORKER))


def speaks() -> bool:
    """Whether this process prints for all: a single process, or the first of the workers."""
    return os.environ.get(ROLE) != "MS_SCHED" and (not is_worker() or os.environ.get(RANK, "0") == "0")


def check_workers(devices: int, asked: str = MESH) -> None:
    """Checks that this process is one of as many workers as the mesh has devices, or a single process.

    Args:
        devices: the number of devices of the mesh.
        asked: the settings or option that set this number.

    Raises:
        UserError: it is neither, or the environment contradicts itself; names the variable, or both counts.
    """
    workers, size, role = _count(WORKER), _count(SIZE), os.environ.get(ROLE)
    if workers is None:
        if role in ROLES:
            raise UserError(f"{ROLE} = {role} is set and {WORKER} is not: msrun sets both; unset {ROLE}")
        if size is not None and size > 1:
            raise UserError(
                f"{SIZE} = {size} says that this is one of {size} processes, and msrun did not start it; unset {SIZE}, "
                f"or start the workers with msrun --worker_num={size}"
            )
        return
    if role not in ROLES:
        raise UserError(f"{WORKER} = {workers} is set and {ROLE} is not: msrun sets both; unset {WORKER}")
    if size not in (None, workers):
        raise UserError(f"{SIZE} = {size} and {WORKER} = {workers} disagree; unset {SIZE}")
    if workers != devices:
        product = f"set the four to a product of {workers}" if asked == MESH else f"set it to {workers}"
        other = f"start {devices} workers" if devices > 1 else "start the command without msrun"
        raise UserError(f"{asked} is {devices}, and msrun started {workers} workers; {product}, or {other}")
    rank = os.environ.get(RANK) or "0"
    if not (rank.isascii() and rank.isdigit() and int(rank) < workers):
        raise UserError(f"{RANK} = {rank} is not one of {workers} workers; unset it: msrun sets it for each worker")


def refuse_workers(command: str) -> None:
    """Checks that msrun did not start a command that runs in one process.

    Raises:
        UserError: msrun did.
    """
    if is_worker():
        raise UserError(f"{command} runs in one process, and {WORKER} = {os.environ[WORKER]}: start it without msrun")


def _count(name: str) -> int | None:
    """A count in the environment; None if it is not set."""
    text = os.environ.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UserError(f"{name} = {text} is not a count of processes; unset it, or start the command with msrun")
    return int(text)

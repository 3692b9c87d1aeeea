"""Has MindSpore partition for an accelerator that is not there, and answers for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import mindspore as ms
from mindspore._c_expression import AutoParallelContext, GraphExecutor_, JitExecutor_
from mindspore.communication import management
from mindspore.parallel._utils import _clear_auto_parallel_context

PARTITIONED = ("semi_auto_parallel", "auto_parallel")
"""Parallel modes in which MindSpore cuts the graph itself, and refuses to for a CPU."""

_EXECUTORS = (GraphExecutor_, JitExecutor_)
_compilers = {executor: executor.compile for executor in _EXECUTORS}
_helpers = {name: getattr(management, name) for name in ("_get_rank_helper", "_get_size_helper")}


class DryRunComplete(Exception):
    """The network was partitioned; in a dry run there is nothing more to do."""


@dataclass(frozen=True)
class Target:
    """What partitioned networks are compiled for."""

    extension: ModuleType
    name: str
    played: int | None
    """As which rank a dry run partitions; None in a run."""


def take_over(target: Target) -> None:
    """Compiles every network that is partitioned for `target`, and all others for CPU as before."""
    give_back()
    for executor, compiler in _compilers.items():
        executor.compile = _aimed(compiler, target)
    if target.played is not None:  # without init(), MindSpore's own would say that this is worker 0 of 1
        management._get_rank_helper = _answer(target.extension.group_rank)
        management._get_size_helper = _answer(target.extension.group_size)


def give_back() -> None:
    """MindSpore is as it was."""
    for executor, compiler in _compilers.items():
        executor.compile = compiler
    for name, helper in _helpers.items():
        setattr(management, name, helper)


def _aimed(compiler: Callable[..., Any], target: Target) -> Callable[..., Any]:
    extension = target.extension

    @functools.wraps(compiler)
    def compile_for_target(executor: object, *args: Any) -> Any:
        if ms.get_auto_parallel_context("parallel_mode") not in PARTITIONED:
            return compiler(executor, *args)
        if target.played is not None:  # MindSpore's Python refuses ranks above 4095; its C++ does not
            AutoParallelContext.get_instance().set_global_rank(target.played)
        extension.aim(target.name)
        try:
            return compiler(executor, *args)
        except RuntimeError as error:
            if extension.DRY_RUN_COMPLETE not in str(error):
                raise
            _clear_auto_parallel_context(args[0])  # as MindSpore does behind a compilation
            raise DryRunComplete(f"partitioned for {target.name}") from None
        finally:
            extension.aim_at_cpu()

    return compile_for_target


def _answer(ask: Callable[[str], int]) -> Callable[[str], int]:
    def helper(group: str) -> int:
        return ask(group)

    return helper

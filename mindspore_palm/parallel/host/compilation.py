"""Has MindSpore partition for an accelerator that is not there, and answers for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import mindspore as ms
from mindspore.communication import management
from mindspore.parallel._auto_parallel_context import auto_parallel_context

from mindspore_palm.errors import UserError

PARTITIONED = ("semi_auto_parallel", "auto_parallel")
"""Parallel modes in which MindSpore cuts the graph itself, and refuses to for a CPU."""


class DryRunComplete(Exception):
    """The network was partitioned; in a dry run there is nothing more to do."""


@functools.cache
def _replaced() -> list[tuple[object, str, Any]]:
    """What is replaced in MindSpore (MS-51): where, its name, and what was there."""
    # Here and not at the top: another MindSpore may not have them, and is told so when the C++ part is asked for.
    from mindspore._c_expression import GraphExecutor_, JitExecutor_

    places = [(GraphExecutor_, "compile"), (JitExecutor_, "compile")]
    places += [(management, "_get_rank_helper"), (management, "_get_size_helper")]
    return [(place, name, getattr(place, name)) for place, name in places]


@dataclass(frozen=True)
class Target:
    """What partitioned networks are compiled for."""

    extension: ModuleType
    name: str
    dry: bool


def take_over(target: Target) -> None:
    """Compiles every network that is partitioned for `target`, and all others for CPU as before (MS-01).

    Raises:
        UserError: MindSpore does not take the step between its front end and its back end.
    """
    give_back()
    if not target.dry:
        _hand_over(target.extension)
    for place, name, original in _replaced():
        if name == "compile":
            place.compile = _aimed(original, target)
    if target.dry:  # without init(), MindSpore's own would say that this is worker 0 of 1
        management._get_rank_helper = _answer(target.extension.group_rank)
        management._get_size_helper = _answer(target.extension.group_size)
        _setters()["global_rank"] = lambda rank: _context_handle().set_global_rank(rank)  # MS-02: Python stops at 4095


def give_back() -> None:
    """MindSpore is as it was."""
    for place, name, original in _replaced():
        setattr(place, name, original)
    _setters()["global_rank"] = auto_parallel_context().set_global_rank


def _setters() -> dict[str, Callable[..., None]]:
    """What MindSpore calls to set each part of its parallel context."""
    from mindspore.parallel import _auto_parallel_context

    return _auto_parallel_context._set_auto_parallel_context_func_map


def _context_handle() -> Any:
    return auto_parallel_context()._context_handle


@functools.cache  # MS-17: MindSpore would take the step once more for each time that it is told
def _hand_over(extension: ModuleType) -> None:
    """Has MindSpore's front end, when it is done with a network that is partitioned, leave it to the CPU's back end."""
    from mindspore.graph import CustomPassType, register_custom_pass

    if not register_custom_pass(extension.HANDOVER, extension.__file__, "all", CustomPassType.FULL_GRAPH):
        raise UserError("MindSpore does not take the step between its front end and the CPU; its log tells why")


def _aimed(compiler: Callable[..., Any], target: Target) -> Callable[..., Any]:
    from mindspore.parallel._utils import _clear_auto_parallel_context

    extension = target.extension

    @functools.wraps(compiler)
    def compile_for_target(executor: object, *args: Any) -> Any:
        if ms.get_auto_parallel_context("parallel_mode") not in PARTITIONED:
            return compiler(executor, *args)
        extension.aim(target.name)
        try:
            return compiler(executor, *args)
        except RuntimeError as error:
            if extension.DRY_RUN_COMPLETE not in str(error):
                raise
            _clear_auto_parallel_context(args[0])  # as MindSpore does behind a compilation that ends
            raise DryRunComplete(f"partitioned for {target.name}") from None
        finally:
            extension.aim_at_cpu()

    return compile_for_target


def _answer(ask: Callable[[str], int]) -> Callable[[str], int]:
    def helper(group: str) -> int:
        return ask(group)

    return helper

"""Has MindSpore partition for an accelerator that this machine does not have."""

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
"""Parallel modes in which MindSpore partitions the graph itself, but not for a CPU."""


class DryRunComplete(Exception):
    """The network was partitioned, which completes a dry run."""


@functools.cache
def _replaced() -> list[tuple[object, str, Any]]:
    """Attributes of MindSpore that are replaced (MS-51): owner, name and original value."""
    # Imported here because another MindSpore may not have them; building the C++ part reports that in a sentence.
    from mindspore._c_expression import GraphExecutor_, JitExecutor_

    attributes = [(GraphExecutor_, "compile"), (JitExecutor_, "compile")]
    attributes += [(management, "_get_rank_helper"), (management, "_get_size_helper")]
    return [(owner, name, getattr(owner, name)) for owner, name in attributes]


@dataclass(frozen=True)
class Target:
    """The target that partitioned networks are compiled for."""

    extension: ModuleType
    name: str
    dry: bool


def install(target: Target) -> None:
    """Has MindSpore compile partitioned networks for `target`, and all others for CPU as before (MS-01).

    Raises:
        UserError: MindSpore rejects the pass between its front end and its back end.
    """
    uninstall()
    if not target.dry:
        _register_handover(target.extension)
    for owner, name, original in _replaced():
        if name == "compile":
            owner.compile = _compiler_for(target, original)  # type: ignore[attr-defined]
    if target.dry:  # without init(), MindSpore's own helpers return worker 0 of 1
        management._get_rank_helper = _helper(target.extension.group_rank)
        management._get_size_helper = _helper(target.extension.group_size)
        _setters()["global_rank"] = lambda rank: _context_handle().set_global_rank(rank)  # MS-02: Python stops at 4095


def uninstall() -> None:
    """Restores all that is replaced in MindSpore."""
    for owner, name, original in _replaced():
        setattr(owner, name, original)
    _setters()["global_rank"] = auto_parallel_context().set_global_rank


def _setters() -> dict[str, Callable[..., None]]:
    """MindSpore's setters of its parallel context, by name."""
    from mindspore.parallel import _auto_parallel_context

    return _auto_parallel_context._set_auto_parallel_context_func_map


def _context_handle() -> Any:
    return auto_parallel_context()._context_handle


@functools.cache  # MS-17: MindSpore would run the pass once for each registration
def _register_handover(extension: ModuleType) -> None:
    """Registers the pass at the end of MindSpore's front end that hands partitioned networks to the CPU's back end."""
    from mindspore.graph import CustomPassType, register_custom_pass

    if not register_custom_pass(extension.HANDOVER, extension.__file__, "all", CustomPassType.FULL_GRAPH):
        raise UserError("MindSpore rejects the pass between its front end and the CPU; see its log")


def _compiler_for(target: Target, compiler: Callable[..., Any]) -> Callable[..., Any]:
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
            _clear_auto_parallel_context(args[0])  # as MindSpore does after a compilation
            raise DryRunComplete(f"partitioned for {target.name}") from None
        finally:
            extension.aim_at_cpu()

    return compile_for_target


def _helper(query: Callable[[str], int]) -> Callable[[str], int]:
    def helper(group: str) -> int:
        return query(group)

    return helper

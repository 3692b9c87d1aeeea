"""The key of a network in the cache of compiled graphs: a digest of everything that decides its graph.

MindSpore finds an entry of its own cache by the number of a graph in the process, and loads another network's without
a word (MS-66). The key is therefore taken from the network itself, as the compiler sees it: the code of ``construct``
and of all that it names, every attribute down to the last constant, names and shapes of the weights, the inputs,
MindSpore's settings, versions, and the sources of the package. Values of weights are no part of it: a graph refers to
weights by name.

The walk is closed by default: an object of a kind that it does not know makes the network one without a key, which is
compiled each time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import hashlib
import inspect
import os
import platform
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore._c_expression import ms_ctx_param, typing
from mindspore.graph.jit_config import JitConfig
from mindspore.ops.composite import base as composite

from mindspore_palm import native

PACKAGE = "mindspore_palm"
ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("*.py", "*.cc", "*.h")

WITHOUT_EFFECT = ("MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH", "MS_DEV_FORCE_USE_COMPILE_CACHE")
"""Environment variables of MindSpore that are no part of a key: those of its own cache."""

IGNORED = {
    *("_create_time", "_id", "_compile_cache", "_phase_cache", "_compile_phase", "arguments_key", "_exist_objs"),
    *("_exist_names", "_scope", "current_phase", "compile_phase", "_jit_graph_name", "_compiled", "_init_flag"),
    *("_is_check_and_refresh", "_lazy_construct_sig", "_parameter_layout_dict", "_parallel_parameter_name_list"),
    *("_parallel_parameter_merge_net_dict", "is_top_cell", "_lazy_user_parameters", "instance_name"),
    "__parse_method__",
}
"""Attributes of Cells and Primitives in which MindSpore notes calls and compilations."""

TIME_OF_JIT = "hash_obj"  # a variable of MindSpore's decorator jit, by which it tells functions apart
PARAMETER_FIELDS = (
    *("name", "requires_grad", "layerwise_parallel", "parallel_optimizer", "comm_fusion", "cache_enable"),
    *("cache_shape", "parallel_optimizer_comm_recompute", "is_pipeline_shared_param"),
)
COMPOSITES = (composite._Grad, ops.HyperMap, ops.Map, ops.MultitypeFuncGraph, ops.GradOperation)
"""MindSpore's higher-order functions, whose Python attributes are all that they are made of."""


class NoKeyError(Exception):
    """The network has no key, so that its graph is not kept. The message names what the walk does not know."""


def key_of(network: nn.Cell, inputs: Iterable[object], weights: Mapping[str, Parameter], phase: str) -> str:
    """The key of a network's graph: 64 hexadecimal digits.

    Args:
        network: the network to compile.
        inputs: of its call.
        weights: by name, as the compiler gets them.
        phase: the network's own, such as train.

    Raises:
        NoKeyError: something of the network is of an unknown kind, or two of its weights have one name.
    """
    walk = _Walk(weights)
    walk.visit((surroundings(), _context(), phase))
    for tensor in inputs:
        walk.input(tensor)
    walk.visit(network)
    return walk.digest.hexdigest()


def key_of_dry_run(settings: str, target: str, rank: int) -> str:
    """The key of one rank's partitioned graph, which a process of its own compiles from these settings."""
    return hashlib.sha256(repr(("dry run", surroundings(), settings, target, rank)).encode()).hexdigest()


def surroundings() -> tuple[object, ...]:
    """Versions, sources and environment variables, which decide a graph beside the network and its settings."""
    return platform.machine(), sys.version, np.__version__, _mindspore(), sources(), _environment()


@functools.cache
def sources(root: Path = ROOT) -> str:
    """Digest of the package's sources, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in root.rglob(pattern)):
        digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _mindspore() -> tuple[object, ...]:
    """Version of MindSpore, and size and time of its compiler's library: somebody may have built their own."""
    library = Path(ms.__file__).parent / "lib" / "libmindspore_frontend.so"
    stat = library.stat() if library.exists() else None
    return ms.__version__, stat and (stat.st_size, stat.st_mtime_ns)


def _environment() -> list[tuple[str, str]]:
    return sorted((k, v) for k, v in os.environ.items() if k.startswith("MS_") and k not in WITHOUT_EFFECT)


def _context() -> list[tuple[str, str]]:
    """All settings of MindSpore's context, and the seed of its random ops."""
    context = ms.context._context()
    settings = [("seed", repr(ms.get_seed()))]
    for name, member in sorted(ms_ctx_param.__members__.items()):
        try:
            settings.append((name, repr(context.get_param(member))))
        except (RuntimeError, TypeError, ValueError, KeyError):  # has no value, on this target
            settings.append((name, "none"))
    return settings


class _Walk:
    """Digests a graph of Python objects, each once."""

    def __init__(self, weights: Mapping[str, Parameter]) -> None:
        self.digest = hashlib.sha256()
        self._weights, self._seen, self._kept = weights, dict[int, int](), list[object]()

    def note(self, *words: object) -> None:
        for word in words:
            text = word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogatepass")
            self.digest.update(b"%d:" % len(text) + text)

    def input(self, value: Any) -> None:
        """An input of the network: shape and dtype of a tensor, the value of anything else."""
        if isinstance(value, Tensor) and not isinstance(value, Parameter) and not getattr(value, "const_arg", False):
            self.note("input", value.dtype, tuple(value.shape))
        else:
            self.visit(value)

    def visit(self, value: Any) -> None:
        if value is None or value is Ellipsis or isinstance(value, bool | int | float | complex | str):
            self.note(type(value).__name__, repr(value))
        elif isinstance(value, bytes):
            self.note("bytes", value)
        elif id(value) in self._seen:
            self.note("seen", self._seen[id(value)])
        else:
            self._seen[id(value)] = len(self._seen)
            self._kept.append(value)  # or another object would get its id
            self._visit(value)

    def _visit(self, value: Any) -> None:
        kind = type(value)
        if isinstance(value, Parameter):
            self._parameter(value)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray | np.generic):
            if value.dtype.hasobject:
                raise NoKeyError("an array of objects")
            self.note("array", value.dtype.str, value.shape, value.tobytes())
        elif isinstance(value, tuple | list):
            self.note(kind.__qualname__, len(value))
            for item in value:
                self.visit(item)
        elif isinstance(value, dict | types.MappingProxyType):
            self.note(kind.__qualname__, len(value))
            for key, item in value.items():
                self.visit(key)
                self.visit(item)
        elif isinstance(value, set | frozenset):
            self.note(kind.__qualname__, *sorted(map(repr, value)))
        elif isinstance(value, enum.Enum) or (hasattr(kind, "__members__") and hasattr(value, "name")):  # C++ has both
            self.note("enum", kind.__qualname__, value.name)
        elif isinstance(value, np.dtype) or kind.__module__ == typing.__name__ or isinstance(value, type(ms.float32)):
            self.note("dtype", value)
        elif isinstance(value, nn.Cell):
            self._cell(value)
        elif isinstance(value, ops.Custom) and not _of_this_package(value):
            raise NoKeyError("an op of a library, whose content MindSpore does not look at")
        elif isinstance(value, (ops.Primitive, *COMPOSITES)):
            self.note("op", kind.__module__, kind.__qualname__)
            self._attributes(value)
        elif isinstance(value, JitConfig):
            self.note("options")
            self.visit(value.jit_config_dict)
        elif isinstance(value, functools.partial):
            self.note("partial")
            self.visit((value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self.note("method")
            self.visit((value.__func__, value.__self__))
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, (types.BuiltinFunctionType, types.ModuleType, np.ufunc, type(np.zeros_like))):
            self.note("builtin", getattr(value, "__module__", ""), value.__name__)
        elif isinstance(value, type):
            self.note("class", value.__module__, value.__qualname__)
        elif kind.__module__.split(".")[0] == PACKAGE and hasattr(value, "__dict__"):
            self.note("object", kind.__module__, kind.__qualname__)
            self._attributes(value)
        elif dataclasses.is_dataclass(value):
            self.note("dataclass", kind.__module__, kind.__qualname__)
            for field in dataclasses.fields(value):
                self.visit((field.name, getattr(value, field.name)))
        else:
            raise NoKeyError(f"{kind.__module__}.{kind.__qualname__}")

    def _parameter(self, parameter: Any) -> None:
        """A weight: name, shape and dtype. The compiler must find this very object by its name."""
        if parameter.name not in self._weights or self._weights[parameter.name] is not parameter:
            raise NoKeyError(f"the weight {parameter.name}, whose name is not its own")
        self.note("parameter", parameter.dtype, tuple(parameter.shape))
        self.visit([getattr(parameter, field, None) for field in PARAMETER_FIELDS])

    def _tensor(self, tensor: Any) -> None:
        if getattr(tensor, "has_init", False):
            raise NoKeyError("a tensor without values")
        self.note("tensor", tensor.dtype, tuple(tensor.shape), tensor.asnumpy().tobytes())

    def _cell(self, cell: nn.Cell) -> None:
        self.note("cell", type(cell).__module__, type(cell).__qualname__)
        self._attributes(cell)
        for base in type(cell).__mro__:  # a construct may call that of its base
            if "construct" in vars(base) and not _is_mindspore(base.__module__):
                self._code(inspect.unwrap(vars(base)["construct"]), type(cell))

    def _attributes(self, value: Any) -> None:
        for name, item in vars(value).items():
            if name not in IGNORED and not (name.startswith("_lazy_") and not item):  # made when first asked for
                self.note("attribute", name)
                self.visit(item)

    def _function(self, function: types.FunctionType) -> None:
        """A function with all that it closes over."""
        self.note("function", function.__module__, function.__qualname__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != TIME_OF_JIT:
                self.note("variable", name)
                with contextlib.suppress(ValueError):  # not assigned yet
                    self.visit(cell.cell_contents)
        if not _is_mindspore(function.__globals__.get("__name__")):
            self._code(function, None)

    def _code(self, function: types.FunctionType, owner: type | None) -> None:
        """The code of a function, and of everything that it names: globals, and attributes of its class."""
        self.visit((function.__defaults__, function.__kwdefaults__))
        names = self._code_object(function.__code__)
        for name in sorted(names):
            if name in function.__globals__:
                self.note("global", name)
                found = function.__globals__[name]
                self.visit(found)
                if isinstance(found, types.ModuleType) and not _is_mindspore(found.__name__):
                    self.visit([getattr(found, other, None) for other in sorted(names) if hasattr(found, other)])
            if owner is not None and (member := _member(owner, name)) is not None:
                self.note("member", name)
                if id(member) not in self._seen:
                    self._seen[id(member)] = len(self._seen)
                    self._kept.append(member)
                    self._code(member, owner)

    def _code_object(self, code: types.CodeType) -> set[str]:
        """Notes a function's instructions and constants; returns the names in it."""
        self.note("code", code.co_code, code.co_varnames, code.co_argcount, code.co_kwonlyargcount, code.co_flags)
        self.note(code.co_names, code.co_freevars, code.co_cellvars)
        names = set(code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                names |= self._code_object(constant)
            else:
                self.visit(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant)
        return names


def _member(owner: type, name: str) -> types.FunctionType | None:
    """A function of a class that is not MindSpore's own, as ``self.name`` finds it."""
    found = inspect.getattr_static(owner, name, None)
    if isinstance(found, property):
        found = found.fget
    elif isinstance(found, staticmethod | classmethod):
        found = found.__func__
    if isinstance(found, types.FunctionType) and not _is_mindspore(found.__module__):
        return inspect.unwrap(found)
    return None


def _of_this_package(op: ops.Custom) -> bool:
    """Whether ``native`` has built an op's library: the folder is named by the digest of all it is made of."""
    library = str(op.func).rpartition(":")[0]
    return native.cache_root() in Path(library).parents


def _is_mindspore(module: str | None) -> bool:
    return (module or "").split(".")[0] == "mindspore"

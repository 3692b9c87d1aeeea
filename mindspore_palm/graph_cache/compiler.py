"""Has MindSpore load the graph of a network that was compiled before, and keep the graphs of others."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mindspore as ms

from mindspore_palm.graph_cache.key import PACKAGE, key_of
from mindspore_palm.graph_cache.store import GraphStore, graphs_folder
from mindspore_palm.machine import return_free_memory

ENABLE, PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"
FORCE = "MS_DEV_FORCE_USE_COMPILE_CACHE"  # MindSpore's own check is of source files, and gives up after one miss
FOREIGN = (ENABLE, PATH, FORCE, "RANK_ID", "MS_ROLE", "MS_DEV_SAVE_GRAPHS", "MS_DEV_PRECOMPILE_ONLY")
"""Environment variables with which graphs are left to MindSpore: its own cache, workers, and writing graphs down."""

NUMBER, LENGTH, SIZES = 0, 2, {1: 8, 5: 4}
"""Kinds of fields of a protobuf message: a number, one that begins with its length, and those of so many bytes."""


def install() -> None:
    """Has MindSpore look for compiled graphs in the user's cache, and keep others there. It may be called again."""
    from mindspore._c_expression import GraphExecutor_

    if not hasattr(GraphExecutor_.compile, "graph_cache"):
        GraphExecutor_.compile = _with_cache(GraphExecutor_.compile)


def _with_cache(compiler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(compiler)
    def compile_or_load(
        executor: Any, network: Any, inputs: tuple[object, ...], keywords: dict[str, object], phase: str, *more: Any
    ) -> Any:
        with CACHE.compiling(executor, network, (inputs, keywords), more):
            result = compiler(executor, network, inputs, keywords, phase, *more)
        return_free_memory()  # what compiling took; the first call of the graph takes more than any later one
        return result

    compile_or_load.graph_cache = CACHE  # type: ignore[attr-defined]
    return compile_or_load


class GraphCache:
    """The graphs of a process, which MindSpore reads and writes through a folder of the process (MS-66).

    MindSpore notes that folder at the first compilation, and numbers the graphs that are compiled with it.

    ``hits`` and ``misses`` count the graphs that were loaded and kept.
    """

    def __init__(self) -> None:
        self._pid, self._number = os.getpid(), 0
        self._work = Path()
        self.hits, self.misses = 0, 0

    @contextlib.contextmanager
    def compiling(self, executor: Any, network: Any, inputs: tuple[Any, Any], more: tuple[Any, ...]) -> Iterator[None]:
        """The compilation in this context loads the network's graph, or keeps it."""
        store, key = self._store(network), None
        if store is not None:
            with contextlib.suppress(Exception):  # NoKeyError, or an object that cannot be read: compiled as ever
                key = key_of(network, (*inputs[0], inputs[1], more), network.parameters_dict(), network.phase)
        if store is None or key is None or not self._open(store):
            yield
            return
        graph, file = store.read(key), self._file()
        try:
            if graph is not None:
                file.write_bytes(graph)
        except OSError:
            graph = None
            file.unlink(missing_ok=True)
        before = file.stat().st_mtime_ns if graph is not None else None
        self._number += 1
        try:
            with _environment({ENABLE: "1", PATH: str(self._work), FORCE: "1"}):
                executor.set_compile_cache_dep_files([__file__])  # enables the cache for this compilation
                try:
                    yield
                finally:
                    executor.set_compile_cache_dep_files([])
            if before is not None and file.exists() and file.stat().st_mtime_ns == before:
                self.hits += 1
            else:
                self.misses += 1
                self._keep(store, key, file)
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    def _store(self, network: Any) -> GraphStore | None:
        """The files; None if graphs of this network, or of this process, are not kept."""
        if type(network).__module__.split(".")[0] != PACKAGE or os.getpid() != self._pid:
            return None
        if ms.get_context("device_target") != "CPU" or ms.get_auto_parallel_context("parallel_mode") != "stand_alone":
            return None
        if any(os.environ.get(name) for name in FOREIGN) or ms.get_context("save_graphs"):
            return None
        folder = graphs_folder()
        return GraphStore(folder) if folder else None

    def _open(self, store: GraphStore) -> bool:
        """Makes the folder in which MindSpore looks."""
        try:
            if self._work == Path():
                self._work = store.work_folder()
            self._file().parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            return False
        return True

    def _file(self) -> Path:
        return self._work / "rank_0" / "graph_cache" / f"compile_cache_{self._number}.mindir"

    def _keep(self, store: GraphStore, key: str, file: Path) -> None:
        """Keeps a graph, if MindSpore has written it as one file, to its end."""
        with contextlib.suppress(OSError):
            if [path.name for path in file.parent.glob("compile_cache_*")] == [file.name]:
                graph = file.read_bytes()
                if is_complete(graph):
                    store.write(key, graph)


CACHE = GraphCache()
"""The one of this process."""


def is_complete(graph: bytes) -> bool:
    """Whether a file of MindSpore, a protobuf message, ends where its last field does (MS-66: it does not look)."""
    position = 0
    try:
        while position < len(graph):
            tag, position = _number(graph, position)
            kind = tag & 7
            if kind == LENGTH:
                length, position = _number(graph, position)
                position += length
            elif kind == NUMBER:
                _, position = _number(graph, position)
            else:
                position += SIZES[kind]
    except (IndexError, KeyError):
        return False
    return 0 < position == len(graph)


def _number(message: bytes, position: int) -> tuple[int, int]:
    """A number of a protobuf message, seven bits a byte, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        position, value, shift = position + 1, value | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return value, position


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for a while; none of them is set before."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]

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

from mindspore_palm.graph_cache.key import PACKAGE, NoKeyError, key_of
from mindspore_palm.graph_cache.store import GraphStore, graphs_folder

ENABLE, PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"
FORCE = "MS_DEV_FORCE_USE_COMPILE_CACHE"  # MindSpore's own check is of source files, and gives up after one miss
FOREIGN = (ENABLE, PATH, FORCE, "RANK_ID", "MS_ROLE", "MS_DEV_SAVE_GRAPHS", "MS_DEV_PRECOMPILE_ONLY")
"""Environment variables with which graphs are left to MindSpore: its own cache, workers, and writing graphs down."""


def install() -> None:
    """Has this process keep compiled graphs. It may be called again."""
    from mindspore._c_expression import GraphExecutor_

    if not isinstance(getattr(GraphExecutor_.compile, "cache", None), _Cache):
        GraphExecutor_.compile = _with_cache(GraphExecutor_.compile)


def _with_cache(compiler: Callable[..., Any]) -> Callable[..., Any]:
    cache = _Cache()

    @functools.wraps(compiler)
    def compile_or_load(
        executor: Any, network: Any, inputs: tuple[object, ...], keywords: dict[str, object], phase: str, *more: Any
    ) -> Any:
        if "GRAPHTRACE" in os.environ:  # DEBUG
            import sys, time
            h, m = cache.hits, cache.misses
            try:
                t = time.process_time(); note = key_of(network, (*inputs, keywords, more), network.parameters_dict(), network.phase)[:8]
            except NoKeyError as e:
                note = f"NOKEY {e}"
            t1 = time.process_time() - t; t = time.process_time()
            with cache.of(executor, network, (inputs, keywords), more):
                r = compiler(executor, network, inputs, keywords, phase, *more)
            print("GRAPH", type(network).__name__, note, "key %.3fs" % t1, "compile %.2fs" % (time.process_time()-t), "hit" if cache.hits>h else "miss" if cache.misses>m else "off", "cpu so far %.2f" % time.process_time(), file=sys.stderr)
            return r
        with cache.of(executor, network, (inputs, keywords), more):
            return compiler(executor, network, inputs, keywords, phase, *more)

    compile_or_load.cache = cache  # type: ignore[attr-defined]
    return compile_or_load


class _Cache:
    """The cache of a process, which MindSpore reads and writes through a folder of the process.

    MindSpore notes its folder at the first compilation, and numbers the graphs that are compiled with it.
    """

    def __init__(self) -> None:
        self._pid, self._number = os.getpid(), 0
        self._work: Path | None = None
        self.hits, self.misses = 0, 0

    @contextlib.contextmanager
    def of(self, executor: Any, network: Any, inputs: tuple[Any, Any], more: tuple[Any, ...]) -> Iterator[None]:
        """Compilations in this context load the network's graph, or keep it."""
        store, key = self._store(network), None
        if store is not None:
            with contextlib.suppress(NoKeyError):
                key = key_of(network, (*inputs[0], inputs[1], more), network.parameters_dict(), network.phase)
        if store is None or key is None or not self._open(store):
            yield
            return
        graph = store.read(key)
        file = self._file()
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
            if self._work is None:
                self._work = store.work_folder()
            self._file().parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            return False
        return True

    def _file(self) -> Path:
        assert self._work is not None
        return self._work / "rank_0" / "graph_cache" / f"compile_cache_{self._number}.mindir"

    def _keep(self, store: GraphStore, key: str, file: Path) -> None:
        """Keeps a graph, if MindSpore has written it as one file."""
        with contextlib.suppress(OSError):
            if [path.name for path in file.parent.glob("compile_cache_*")] == [file.name]:
                store.write(key, file.read_bytes())


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for a while; none of them is set before."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]

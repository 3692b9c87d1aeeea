"""Compiled graphs are kept: a network is loaded with the same results, and no other network ever is."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys

import mindspore as ms
import pytest
from unit.graph_cases import BATCH, ROOT, Times, built, counted, trained

from mindspore_palm.graph_cache import compiler, store
from mindspore_palm.graph_cache.compiler import CACHE, is_complete
from mindspore_palm.graph_cache.store import SWITCH, GraphStore, graphs_folder


@pytest.fixture
def folder(device, tmp_path, monkeypatch):
    """An empty folder of graphs."""
    if device.name != "CPU":
        pytest.skip("graphs are kept on CPU only")
    monkeypatch.setenv(SWITCH, str(tmp_path / "graphs"))
    return tmp_path / "graphs"


# Compiling


@pytest.fixture(scope="module")
def kept(device, tmp_path_factory):
    """A folder with the graphs of a short training, and its results."""
    if device.name != "CPU":
        pytest.skip("graphs are kept on CPU only")
    folder = tmp_path_factory.mktemp("kept") / "graphs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, str(folder))
        results, counts = counted(lambda: trained())
    assert counts == (0, 2)
    return folder, results


@pytest.fixture
def copy(kept, folder):
    """The same in a folder of the test's own."""
    shutil.copytree(kept[0], folder)
    return folder, kept[1]


def test_a_loaded_graph_computes_the_same_bits(copy, monkeypatch):
    """Losses and norms of five steps, held-out loss, weights and moments.

    The graphs have other numbers in this process than they had when they were kept.
    """
    _, results = copy
    assert counted(lambda: trained()) == (results, (2, 0))
    assert counted(lambda: trained()) == (results, (2, 0))
    monkeypatch.setenv(SWITCH, "off")
    assert counted(lambda: trained()) == (results, (0, 0))


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.micro_batch=2", "train.compute_dtype=float16", "optimizer.name=adamw"),
        ("model.layers=2", "model.block=serial", "model.attention=multi_head", "parallel.recompute=block"),
    ],
    ids=" ".join,
)
def test_loaded_graphs_of_other_settings_compute_the_same_bits(folder, monkeypatch, overrides):
    graphs = 3 if "train.micro_batch=2" in overrides else 2  # a step, or two parts of it, and the evaluation
    first, counts = counted(lambda: trained(*overrides))
    assert counts == (0, graphs)
    assert counted(lambda: trained(*overrides)) == (first, (graphs, 0))
    monkeypatch.setenv(SWITCH, "off")
    assert counted(lambda: trained(*overrides)) == (first, (0, 0))


def swap(step, evaluation):
    a, b = step.read_bytes(), evaluation.read_bytes()
    step.write_bytes(b)
    evaluation.write_bytes(a)


def damage(step, evaluation):
    step.write_bytes(step.read_bytes()[:-1])
    content = evaluation.read_bytes()
    evaluation.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])


def seal_nonsense(*files):
    for file in files:
        GraphStore(file.parent).write(file.stem, b"\x0a\x03abc")


@pytest.mark.parametrize("change", [damage, swap, seal_nonsense])
def test_a_file_that_is_not_the_graph_is_noticed_and_compiled_again(copy, change):
    """Damaged, the graph of another network, or nothing that MindSpore reads."""
    folder, results = copy
    change(*folder.glob("*.graph"))
    assert counted(lambda: trained()) == (results, (0, 2))
    assert counted(lambda: trained()) == (results, (2, 0))


def test_a_compilation_that_fails_leaves_the_cache_as_it_was(copy):
    folder, results = copy
    before, files = dict(os.environ), sorted(folder.iterdir())
    with pytest.raises(RuntimeError, match="argument size"):
        built()[1]._single(BATCH)
    assert counted(lambda: trained()) == (results, (2, 0))
    assert dict(os.environ) == before and sorted(folder.iterdir()) == files


PROCESS = """
import zlib
from unit.graph_cases import counted, trained
from mindspore_palm.parallel.context import open_device
open_device("CPU")
(results, evaluation, state), counts = counted(lambda: trained(steps=2))
print(counts, results, evaluation, zlib.crc32(repr(sorted(state.items())).encode()))
"""


def test_processes_that_start_together_compile_and_a_later_one_loads(folder, tmp_path):
    """Each has a seed of its own for the order of sets."""
    command = [sys.executable, "-c", PROCESS]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])

    def start(seed):
        variables = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": str(seed)}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables, cwd=tmp_path)

    printed = [process.communicate(timeout=300)[0].split(" ", 2) for process in [start(1), start(2)]]
    later = start(3).communicate(timeout=300)[0].split(" ", 2)
    assert later[:2] == ["(2,", "0)"]
    assert all(one[:2] in (["(0,", "2)"], ["(1,", "1)"], ["(2,", "0)"]) for one in printed)
    assert [one[2] for one in printed] == [later[2]] * 2
    assert {file.suffix for file in folder.iterdir()} == {".graph"} and len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "variable", ["MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH", "RANK_ID", "MS_ROLE", "MS_DEV_SAVE_GRAPHS"]
)
def test_a_worker_and_a_user_of_mindspores_own_cache_keep_nothing(folder, monkeypatch, variable):
    network = built()[1]._single
    assert CACHE._store(network) is not None
    monkeypatch.setenv(variable, "1")
    assert CACHE._store(network) is None


def test_only_networks_of_the_package_in_their_own_process_are_kept(folder, monkeypatch):
    assert CACHE._store(Times(2.0)) is None
    network = built()[1]._single
    monkeypatch.setattr(ms, "get_auto_parallel_context", lambda name: "semi_auto_parallel")
    assert CACHE._store(network) is None
    monkeypatch.undo()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert CACHE._store(network) is None


def test_an_incomplete_message_is_told():
    message = b"\x0a\x03abc\x10\x96\x01\x1d1234\x2112345678"
    ends = [n for n in range(len(message) + 1) if is_complete(message[:n])]
    assert ends == [5, 8, 13, 22]  # after each field: bytes, a number, four bytes, eight
    assert not is_complete(b"\x0b")


# The files


def test_a_graph_is_read_as_it_was_written(tmp_path):
    files = GraphStore(tmp_path)
    assert files.read("a") is None
    files.write("a", b"graph")
    assert files.read("a") == b"graph" and files.read("b") is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.graph"]


def test_every_flipped_byte_is_noticed(tmp_path):
    files, path = GraphStore(tmp_path), tmp_path / "a.graph"
    files.write("a", b"graph")
    good = path.read_bytes()
    for i in range(len(good)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        assert files.read("a") is None and not path.exists()


def test_the_least_recently_used_graphs_are_removed(tmp_path):
    files = GraphStore(tmp_path, limit=3 * 132)
    for number, name in enumerate("abc"):
        files.write(name, bytes(100))
        os.utime(tmp_path / f"{name}.graph", (number, number))
    assert files.read("a") == bytes(100)  # now the newest
    files.write("d", bytes(100))
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "c", "d"}
    files.write("e", bytes(400))  # larger than all of them may be
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "c", "d"}


def test_folders_of_killed_processes_are_removed(tmp_path):
    files = GraphStore(tmp_path)
    old, new = files.work_folder(), files.work_folder()
    os.utime(old, (1, 1))
    files.write("a", b"graph")
    assert not old.exists() and new.exists()


def test_graphs_are_kept_in_the_cache_of_the_user(tmp_path, monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setenv("MINDSPORE_PALM_CACHE", str(tmp_path))
    assert graphs_folder() == tmp_path / "graphs"
    monkeypatch.setenv(SWITCH, "off")
    assert graphs_folder() is None
    monkeypatch.setenv(SWITCH, str(tmp_path / "elsewhere"))
    assert graphs_folder() == tmp_path / "elsewhere"


def test_no_graph_is_kept_where_there_is_no_place(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(SWITCH, str(tmp_path / "file"))
    assert graphs_folder() is None
    monkeypatch.setenv(SWITCH, str(tmp_path / "graphs"))
    assert graphs_folder() is not None
    with monkeypatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _: (store.ROOM, store.ROOM))
        assert graphs_folder() is None
    monkeypatch.setattr(store, "ROOM", 1 << 60)
    assert graphs_folder() is None


def test_a_file_that_cannot_be_written_is_no_error(tmp_path):
    files = GraphStore(tmp_path / "gone")
    files.write("a", b"graph")
    assert files.read("a") is None
    files.remove("a")


def test_install_may_be_called_again(device):
    from mindspore._c_expression import GraphExecutor_

    before = GraphExecutor_.compile
    compiler.install()
    assert GraphExecutor_.compile is before


def test_memory_of_a_compilation_is_returned(device, monkeypatch):
    calls = []
    monkeypatch.setattr(compiler, "return_free_memory", lambda: calls.append("returned"))
    network = Times(ms.Tensor(2.0))
    network(ms.Tensor([1.0, 2.0]))
    network(ms.Tensor([3.0, 4.0]))
    assert calls == ["returned"]

"""Compiled graphs are kept: the same network is loaded with the same results, and no other network ever is."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from mindspore_palm.graph_cache import compiler, key, store
from mindspore_palm.graph_cache.compiler import CACHE, is_complete
from mindspore_palm.graph_cache.key import NoKeyError, key_of, sources
from mindspore_palm.graph_cache.store import SWITCH, GraphStore, graphs_folder
from mindspore_palm.model import loss as loss_module
from mindspore_palm.parallel.axes import layout
from mindspore_palm.parallel.check import layout_of
from mindspore_palm.settings import load_settings
from mindspore_palm.train import step as step_module
from mindspore_palm.train.build import build_step
from mindspore_palm.train.evaluate import Evaluator, SummedCrossEntropy

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "model.layers=1 model.d_model=16 model.heads=2 model.head_dim=8 model.d_ff=32 model.vocab_size=300 "
    "data.seq_len=16 train.batch_size=4 train.steps=10 optimizer.learning_rate=0.01 optimizer.schedule=constant"
)
BATCH = Tensor(np.zeros((4, 16), np.int32))
COUNT = Tensor(np.float32(64))

SWITCHES = [
    "model.layers=2",
    "model.d_ff=64",
    "model.block=serial",
    "model.attention=multi_head",
    "model.mlp=gelu",
    "model.norm=layer_norm",
    "model.norm_epsilon=0.001",
    "model.norm_scale=around_one",
    "model.final_norm_scale=true",
    "model.scaled_logits=false",
    "model.xpos_base=512",
    "optimizer.name=adamw",
    "optimizer.name=lion",
    "optimizer.factored=true",
    "optimizer.update_clip=2.0",
    "optimizer.lr_squared_decay=false",
    "optimizer.clip_norm=0.5",
    "optimizer.learning_rate=0.02",
    "optimizer.schedule=cosine",
    "train.z_loss=0.001",
    "train.compute_dtype=float16",
    "parallel.recompute=block",
    "parallel.recompute=attention",
]


@pytest.fixture
def folder(device, tmp_path, monkeypatch):
    """An empty folder of graphs."""
    if device.name != "CPU":
        pytest.skip("graphs are kept on CPU only")
    monkeypatch.setenv(SWITCH, str(tmp_path / "graphs"))
    return tmp_path / "graphs"


def settings_of(*overrides):
    by_name = dict(line.split("=", 1) for line in (*TINY.split(), *overrides))
    return load_settings(None, [f"{name}={value}" for name, value in by_name.items()])[0]


def built(*overrides):
    """A new network and its step."""
    settings = settings_of(*overrides)
    with layout(layout_of(settings, "CPU")):
        return build_step(settings)


def key_of_step(*overrides, inputs=(BATCH, BATCH, COUNT)):
    network = built(*overrides)[1]._single
    return key_of(network, inputs, network.parameters_dict(), network.phase)


def trained(*overrides, steps=5):
    """Losses of some steps, held-out loss, and the state afterwards, of a new network."""
    settings, rng = settings_of(*overrides), np.random.default_rng(1)
    with layout(layout_of(settings, "CPU")):
        palm, step = build_step(settings)
        batches = rng.integers(0, 300, (steps, 2, 4, 16)).astype(np.int32)
        results = [step(*batch) for batch in batches]
        evaluation = Evaluator(palm, np.ones(300, np.int32))([tuple(batches[0])])
        state = {p.name: p.asnumpy().tobytes() for p in step.state}
    return results, evaluation, state


def counted(function):
    """The result of a function, and how many graphs it loaded and how many it kept."""
    hits, misses = CACHE.hits, CACHE.misses
    result = function()
    return result, (CACHE.hits - hits, CACHE.misses - misses)


class Times(nn.Cell):
    """A network that the package does not have."""

    def __init__(self, constant, name="w"):
        super().__init__()
        self.constant = constant
        self.w = Parameter(np.ones(2, np.float32), name=name)

    def construct(self, x):
        return x * self.w * self.constant


def key_of_times(constant, *others, phase="train"):
    network = Times(constant)
    for other in others:
        network.insert_child_to_cell(other.w.name + "_of", other)
    return key_of(network, (COUNT,), network.parameters_dict(), phase)


# The key


def test_a_network_that_is_built_again_has_the_same_key(folder):
    assert key_of_step() == key_of_step()
    assert re.fullmatch("[0-9a-f]{64}", key_of_step())


def test_every_switch_gives_another_key(folder):
    keys = {switch: key_of_step(switch) for switch in ("train.steps=10", *SWITCHES)}
    same = [(a, b) for a in keys for b in keys if a < b and keys[a] == keys[b]]
    assert same == []


def test_weights_have_no_part_in_the_key(folder):
    assert key_of_step("train.seed=1") == key_of_step("train.seed=2")


def test_compiling_does_not_change_the_key(folder):
    palm, step = built()
    network = SummedCrossEntropy(palm)
    before = key_of(network, (BATCH, BATCH), network.parameters_dict(), network.phase)
    step(*np.zeros((2, 4, 16), np.int32))
    assert key_of(network, (BATCH, BATCH), network.parameters_dict(), network.phase) == before


@pytest.mark.parametrize(
    "inputs",
    [
        (Tensor(np.zeros((2, 16), np.int32)), Tensor(np.zeros((2, 16), np.int32)), COUNT),
        (BATCH, BATCH, Tensor(np.float16(64))),
        (BATCH, BATCH, 64.0),
        (BATCH, BATCH, COUNT, COUNT),
    ],
    ids=["shape", "dtype", "number", "count"],
)
def test_other_inputs_give_another_key(folder, inputs):
    assert key_of_step(inputs=inputs) != key_of_step()


def test_values_of_inputs_have_no_part_in_the_key(folder):
    ones = Tensor(np.ones((4, 16), np.int32))
    assert key_of_step(inputs=(ones, ones, COUNT)) == key_of_step()


@pytest.mark.parametrize(
    "other",
    [
        2.0000001,
        np.float32(2),
        Tensor(np.float32(2)),
        [2.0],
        (2.0,),
        {"a": 2.0},
        {"b": 2.0},
        "2.0",
        True,
        None,
        ops.Add(),
    ],
    ids=repr,
)
def test_a_constant_has_part_in_the_key(device, other):
    assert key_of_times(other) != key_of_times(2.0)
    assert key_of_times(other) == key_of_times(other)


def test_the_last_element_of_a_large_constant_has_part_in_the_key(device):
    large = np.zeros(100_000, np.float32)
    changed = large.copy()
    changed[-1] = 1e-30
    assert key_of_times(Tensor(large)) != key_of_times(Tensor(changed))


def test_an_attribute_of_an_op_has_part_in_the_key(device):
    assert key_of_times(ops.Concat(0)) != key_of_times(ops.Concat(1))
    assert key_of_times(ops.MatMul()) != key_of_times(ops.MatMul(transpose_b=True))


def test_the_phase_has_part_in_the_key(device):
    assert key_of_times(2.0, phase="train") != key_of_times(2.0, phase="predict")


def test_a_seed_and_the_variables_of_mindspore_have_part_in_the_key(device, monkeypatch):
    before = key_of_times(2.0)
    monkeypatch.setenv("MS_DEV_SOMETHING", "1")
    assert key_of_times(2.0) != before
    monkeypatch.undo()
    assert key_of_times(2.0) == before
    monkeypatch.setattr(ms, "get_seed", lambda: 7)
    assert key_of_times(2.0) != before


def test_a_setting_of_mindspore_has_part_in_the_key(device):
    before = key_of_times(2.0)
    ms.set_context(max_call_depth=ms.get_context("max_call_depth") + 1)
    try:
        assert key_of_times(2.0) != before
    finally:
        ms.set_context(max_call_depth=ms.get_context("max_call_depth") - 1)
    assert key_of_times(2.0) == before


@pytest.mark.parametrize(
    ("owner", "name"),
    [(ms, "__version__"), (np, "__version__"), (key.sys, "version")],
    ids=["mindspore", "numpy", "python"],
)
def test_versions_have_part_in_the_key(device, monkeypatch, owner, name):
    before = key_of_times(2.0)
    monkeypatch.setattr(owner, name, "another")
    key._mindspore.cache_clear()
    try:
        assert key_of_times(2.0) != before
    finally:
        key._mindspore.cache_clear()


def test_the_content_of_every_source_has_part_in_the_key(device, tmp_path, monkeypatch):
    before = key_of_times(2.0)
    monkeypatch.setattr(key, "sources", lambda: "other")
    assert key_of_times(2.0) != before
    (tmp_path / "room").mkdir()
    for name in ("a.py", "room/b.py", "room/c.cc", "room/d.h"):
        (tmp_path / name).write_text("x = 1\n")
    digests = {sources.__wrapped__(tmp_path)}
    for name in ("a.py", "room/b.py", "room/c.cc", "room/d.h"):
        (tmp_path / name).write_text("x = 2\n")
        digests.add(sources.__wrapped__(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "e.py")
    digests.add(sources.__wrapped__(tmp_path))
    assert len(digests) == 6


def test_code_that_was_replaced_has_part_in_the_key(folder, monkeypatch):
    """The sources are the same then: a planted error must not load the graph of the network without it."""
    before = key_of_step()
    with monkeypatch.context() as patch:
        patch.setattr(loss_module.Loss, "construct", lambda self, inputs, targets, count: (count, count))
        assert key_of_step() != before
    with monkeypatch.context() as patch:  # a method that construct calls
        patch.setattr(step_module.Update, "factor", lambda self, norm, *scale: norm)
        assert key_of_step() != before
    with monkeypatch.context() as patch:  # a function that this method calls
        patch.setattr(step_module, "clip_factor", lambda norm, clip: norm)
        assert key_of_step() != before
    assert key_of_step() == before


def test_what_the_walk_does_not_know_has_no_key(device):
    with pytest.raises(NoKeyError, match="generator"):
        key_of_times(i for i in range(3))
    with pytest.raises(NoKeyError, match="array of objects"):
        key_of_times(np.array([object()]))
    with pytest.raises(NoKeyError, match="library"):
        key_of_times(ops.Custom("./a.so:f", lambda x: x, lambda x: x, func_type="aot"))


def test_two_weights_of_one_name_have_no_key(device):
    """MindSpore finds the weights of a loaded graph by name."""
    network = Times(2.0)
    weights = network.parameters_dict()
    network.w = Parameter(np.ones(2, np.float32), name="w")
    with pytest.raises(NoKeyError, match="whose name is not its own"):
        key_of(network, (COUNT,), weights, "train")


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
from unit.test_graph_cache import counted, trained
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

"""Checkpoint files: any mesh to any other, and no altered byte that is believed. No network is needed."""

from __future__ import annotations

import random
import shutil
import tracemalloc
from itertools import pairwise, product

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindspore_palm.checkpoint import format as module
from mindspore_palm.checkpoint.format import (
    Checkpoint,
    DamagedCheckpoint,
    Slicing,
    publish,
    slicings,
    steps_in,
    write_slices,
)
from mindspore_palm.checkpoint.safetensors_stream import write_tensors
from mindspore_palm.config import PaLMConfig
from mindspore_palm.errors import UserError
from mindspore_palm.model.weights import placements
from mindspore_palm.parallel.axes import TABLES, Layout
from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.parallel.placement import Placement

CONFIG = PaLMConfig(layers=2, d_model=48, heads=4, head_dim=16, d_ff=192, vocab_size=61, vocab_multiple=8)
SMALL = {"config.yaml": b"model: {}\n", "tokenizer.model": b"tokens"}
# of the parity table, around and back to the start
RING = [(1, 1, 1), (1, 2, 1), (2, 2, 2), (1, 2, 2), (2, 1, 2), (2, 2, 1), (1, 1, 2), (1, 1, 1)]


def placed(mesh, shard_weights="pod", table="palm"):
    """Name to placement of all weights, of a moment of each, and of the count of updates."""
    layout = Layout(Mesh(*mesh), TABLES[table], shard_weights)
    there = {prefix + p.name: p for prefix in ("", "m.") for p in placements(CONFIG, layout)}
    return {**there, "global_step": Placement("global_step", (1,), ("embed",), layout, fully_sharded=False)}


def values():
    draw = np.random.default_rng(5)
    whole = {name: draw.standard_normal(p.shape).astype(np.float32) for name, p in placed((1, 1, 1)).items()}
    return {**whole, "global_step": np.array([7], np.int32)}


def write(folder, there, read, step=7):
    """What the workers of a mesh write together, each from what it holds."""
    temporary = folder / f"step_{step:06d}.tmp"
    devices = next(iter(there.values())).layout.devices
    for rank in range(devices):
        own = {name: read(name, p.window(rank)) for name, p in there.items() if p.is_first(rank)}
        if own:
            write_slices(temporary, rank, own)
    kinds = {name: "int32" if name == "global_step" else "float32" for name in there}
    return publish(temporary, slicings(there), kinds, step, {**SMALL, "state.json": b'{"step": %d}' % step})


@pytest.fixture(scope="module")
def whole():
    return values()


@pytest.fixture(scope="module")
def two(whole, tmp_path_factory):
    """Two checkpoints of a run on four devices."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    there = placed((1, 2, 2))
    write(folder, there, lambda name, window: whole[name][window], 7)
    write(folder, there, lambda name, window: whole[name][window] * 2, 14)
    return folder


@pytest.mark.parametrize("shard_weights", ["off", "pod", "all"])
def test_around_a_ring_of_meshes_to_the_same_bits(shard_weights, whole, tmp_path):
    """Each worker reads what it holds on the new mesh from what was written on the old one, and writes it again."""
    current = write(tmp_path / "0", placed(RING[0], shard_weights), lambda name, window: whole[name][window])
    for number, mesh in enumerate(RING[1:], 1):
        stored = Checkpoint(current).tensors
        current = write(tmp_path / str(number), placed(mesh, shard_weights), lambda name, w, s=stored: s[name].read(w))
    again = load_file(current / "rank_0.safetensors")
    assert again.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(again[name], value, strict=True)


@pytest.mark.parametrize(("before", "after"), list(product(RING[:-1], RING[:-1])), ids=str)
def test_any_mesh_from_any_other(before, after, whole, tmp_path):
    folder = write(tmp_path, placed(before), lambda name, window: whole[name][window])
    stored, opened = Checkpoint(folder).tensors, set()
    for name, placement in placed(after, "all", "model").items():
        for rank in range(placement.layout.devices):
            window = placement.window(rank)
            np.testing.assert_array_equal(stored[name].read(window), whole[name][window])
            opened |= {holder for holder, _ in stored[name].slicing.overlapping(window)}
    assert opened == {int(file.stem.split("_")[1]) for file in folder.glob("rank_*.safetensors")}


def test_a_slice_is_written_once_and_read_from_where_it_lies(whole, tmp_path):
    there = placed((2, 2, 2))
    folder = write(tmp_path, there, lambda name, window: whole[name][window])
    written = {rank: load_file(folder / f"rank_{rank}.safetensors") for rank in range(4)}
    assert not (folder / "rank_4.safetensors").exists()  # the second pod holds copies
    assert sum(part.size for file in written.values() for part in file.values()) == sum(v.size for v in whole.values())
    q_wi = Checkpoint(folder).tensors["blocks.1.q_wi"]
    assert q_wi.slicing == Slicing((48, 448), (24, 224), (0, 1, 2, 3))
    assert [rank for rank, _ in q_wi.slicing.overlapping((slice(0, 24), slice(0, 448)))] == [0, 1]
    assert [rank for rank, _ in q_wi.slicing.overlapping((slice(30, 31), slice(223, 225)))] == [2, 3]


def test_palm_540b_is_read_slice_by_slice():
    """Where a worker of another mesh finds its q_wi, of 6,144 files, without opening any."""
    big = PaLMConfig.from_preset("palm_540b", vocab_multiple=3072)
    old, new = (Layout(Mesh(pods, data, model)) for pods, data, model in ((2, 256, 12), (1, 128, 24)))
    before, after = ({p.name: p for p in placements(big, place)} for place in (old, new))
    slicing = Slicing.of(before["blocks.0.q_wi"])
    assert len(slicing.ranks) == 3072 and slicing.slice_shape == (72, 13_312)
    parts = list(slicing.overlapping(after["blocks.0.q_wi"].window(29)))
    assert [rank for rank, _ in parts] == [2 * 12 + 2, 3 * 12 + 2]  # rows 144 to 288, the sixth part of 24 columns


def test_a_tensor_is_copied_in_blocks(two, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1000)  # bytes: less than six rows of the embedding
    stored = Checkpoint(two / "step_000007").tensors
    sizes = [block.nbytes for block in stored["embedding"].blocks()]
    assert len(sizes) > 10 and max(sizes) <= 1000
    with open(tmp_path / "one.safetensors", "wb") as file:
        write_tensors(file, stored, {"a": "b"})
    again = load_file(tmp_path / "one.safetensors")
    assert all(np.array_equal(again[name], value) and again[name].dtype == value.dtype for name, value in whole.items())


def test_neither_reading_nor_exporting_holds_a_tensor_whole(tmp_path, monkeypatch):
    """A tensor of 8 MB in two slices: a window of it takes its own bytes, an export no more than some blocks."""
    monkeypatch.setattr(module, "BLOCK", 2**17)
    shape = (8192, 256)
    there = {"embedding": Placement("embedding", shape, ("vocab", "embed"), Layout(Mesh(1, 1, 2)))}
    folder = write(tmp_path, there, lambda name, window: np.full((4096, 256), window[0].start, np.float32))
    stored = Checkpoint(folder).tensors
    peaks = []
    for work in (
        lambda: stored["embedding"].read((slice(4000, 4200), slice(0, 256))),
        lambda: write_tensors(file, stored, {"a": "b"}),
    ):
        with open(tmp_path / "one.safetensors", "wb") as file:
            tracemalloc.start()
            work()
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert max(peaks) < 2**20, peaks
    again = load_file(tmp_path / "one.safetensors")["embedding"]
    assert again.shape == shape and (again[:4096] == 0).all() and (again[4096:] == 4096).all()


def believed(folder):
    """Whether a checkpoint passes all that is looked at before a run goes on from it."""
    try:
        Checkpoint(folder).verify()
    except DamagedCheckpoint as error:
        assert "\n" not in str(error)
        return False, str(error)
    return True, ""


def test_200_altered_files(two, tmp_path):
    """A bit flipped, cut off, grown, missing, or swapped between checkpoints, of every kind of file."""
    draw = random.Random(200)
    assert believed(two / "step_000007")[0] and believed(two / "step_000014")[0]
    files = sorted(path.name for path in (two / "step_000007").iterdir())
    assert len(files) == 8
    caught = []
    for number in range(200):
        name, kind = files[number % len(files)], ("flip", "cut", "grow", "lose", "swap")[number // len(files) % 5]
        if kind == "swap" and name in ("config.yaml", "tokenizer.model"):
            kind = "flip"  # both checkpoints have the same
        folder = tmp_path / "step_000007"
        shutil.copytree(two / "step_000007", folder)
        file = folder / name
        content = bytearray(file.read_bytes())
        if kind == "flip":
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del content[draw.randrange(len(content)) :]
        elif kind == "grow":
            content += draw.randbytes(draw.randint(1, 100))
        elif kind == "swap":
            content = bytearray((two / "step_000014" / name).read_bytes())
        file.write_bytes(content)
        if kind == "lose":
            file.unlink()
        whole, said = believed(folder)
        assert not whole, f"{kind} of {name} was believed"
        assert name in said or kind == "swap", said
        caught.append(kind)
        shutil.rmtree(folder)
    assert len(caught) == 200 and set(caught) == {"flip", "cut", "grow", "lose", "swap"}


def test_bytes_of_the_manifest_count(two, tmp_path):
    """Also those that change nothing of what it says."""
    content, file = (two / "step_000007" / "manifest.json").read_bytes(), tmp_path / "manifest.json"
    for place in range(0, len(content), 5):
        altered = bytearray(content)
        altered[place] = ord("\t") if altered[place] in b" \n" else altered[place] ^ 1
        file.write_bytes(altered)
        with pytest.raises(DamagedCheckpoint, match="does not hold its own SHA-256"):
            module._read_manifest(file)
    file.write_bytes(content)
    assert module._read_manifest(file)["step"] == 7


def test_a_checkpoint_under_another_ones_name(two, tmp_path):
    shutil.copytree(two / "step_000007", tmp_path / "step_000014")
    assert believed(tmp_path / "step_000014") == (
        False,
        f"{tmp_path / 'step_000014'}: its manifest is of step 7, its name is not",
    )


def test_what_is_not_complete_is_not_seen(two, tmp_path):
    assert steps_in(two) == [14, 7]
    assert steps_in(tmp_path / "nowhere") == []
    for name in ("step_000009.tmp", "step_000007.damaged", "step_12", "other"):
        (tmp_path / name).mkdir()
    assert steps_in(tmp_path) == []


def test_a_write_that_fails_leaves_nothing_that_is_seen(whole, tmp_path, monkeypatch):
    """At any of the files."""
    write_one, there = module.write_atomically, placed((1, 2, 1))
    names = []
    for number in range(9):
        folder, count = tmp_path / str(number), iter(range(100))

        def fail(path, number=number, count=count):
            names.append(path.name)
            if next(count) == number:
                raise OSError(28, "No space left on device", str(path))
            return write_one(path)

        monkeypatch.setattr(module, "write_atomically", fail)
        if number < 8:
            with pytest.raises(OSError, match="No space left"):
                write(folder, there, lambda name, window: whole[name][window])
            assert steps_in(folder) == []
        else:
            assert believed(write(folder, there, lambda name, window: whole[name][window]))[0]
    assert {"rank_1.safetensors", "state.json", "manifest.json"} <= set(names)


def test_formats_of_another_time_are_refused_by_name(two, tmp_path, monkeypatch):
    folder = shutil.copytree(two / "step_000007", tmp_path / "step_000007")
    monkeypatch.setattr(module, "CHECKPOINT_FORMAT", "mindspore_palm checkpoint 2")
    with pytest.raises(UserError, match="is of the format 'mindspore_palm checkpoint 1'"):
        Checkpoint(folder)


def test_rings_are_made_of_neighbours():
    assert all(a != b for a, b in pairwise(RING)) and len(set(RING)) == 7

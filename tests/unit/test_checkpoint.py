"""Checkpoint files: written on any mesh, read on any other, and every altered byte detected. No network is needed."""

from __future__ import annotations

import json
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
    Sharding,
    publish,
    shardings,
    steps_in,
    write_shards,
)
from mindspore_palm.checkpoint.safetensors_stream import write_tensors
from mindspore_palm.config import PaLMConfig
from mindspore_palm.errors import UserError
from mindspore_palm.model.weights import placements
from mindspore_palm.parallel.axes import TABLES, Layout
from mindspore_palm.parallel.mesh import Mesh
from mindspore_palm.parallel.placement import Placement

CONFIG = PaLMConfig(layers=2, d_model=48, heads=4, head_dim=16, d_ff=192, vocab_size=61, vocab_multiple=8)
GPT3 = CONFIG.model_copy(update={"block": "serial", "attention": "multi_head", "mlp": "gelu", "final_norm_scale": True})
SMALL = {"config.yaml": b"model: {}\n", "tokenizer.model": b"tokens"}
# meshes of the parity table, around and back to the start
RING = [(1, 1, 1), (1, 2, 1), (2, 2, 2), (1, 2, 2), (2, 1, 2), (2, 2, 1), (1, 1, 2), (1, 1, 1)]


def placed(mesh, shard_weights="pod", table="palm", config=CONFIG):
    """Placements by name: all weights, one optimizer moment of each, and the step count."""
    layout = Layout(Mesh(*mesh), TABLES[table], shard_weights)
    weights = {prefix + p.name: p for prefix in ("", "m.") for p in placements(config, layout)}
    return {**weights, "global_step": Placement("global_step", (1,), ("embed",), layout, fully_sharded=False)}


def values(config=CONFIG):
    draw = np.random.default_rng(5)
    one = placed((1, 1, 1), config=config)
    floats = {name: draw.standard_normal(p.shape).astype(np.float32) for name, p in one.items()}
    return {**floats, "global_step": np.array([7], np.int32)}


def write(folder, placements_by_name, read, step=7):
    """Writes a checkpoint as the workers of a mesh do, each from its own shards."""
    temporary = folder / f"step_{step:06d}.tmp"
    devices = next(iter(placements_by_name.values())).layout.devices
    for rank in range(devices):
        firsts = {name: p for name, p in placements_by_name.items() if p.is_first(rank)}
        own = {
            name: np.concatenate([read(name, window) for window in p.windows(rank)], -1) for name, p in firsts.items()
        }
        if own:
            write_shards(temporary, rank, own)
    dtypes = {name: "int32" if name == "global_step" else "float32" for name in placements_by_name}
    small_files = {**SMALL, "state.json": b'{"step": %d}' % step}
    return publish(temporary, shardings(placements_by_name), dtypes, step, small_files)


@pytest.fixture(scope="module")
def full():
    return values()


@pytest.fixture(scope="module")
def two(full, tmp_path_factory):
    """Two checkpoints of a run on four devices."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    four = placed((1, 2, 2))
    write(folder, four, lambda name, window: full[name][window], 7)
    write(folder, four, lambda name, window: full[name][window] * 2, 14)
    return folder


@pytest.mark.parametrize("config", [CONFIG, GPT3], ids=["palm", "gpt3"])
@pytest.mark.parametrize("shard_weights", ["off", "pod", "all"])
def test_around_a_ring_of_meshes_to_the_same_bits(shard_weights, config, tmp_path):
    """Each worker reads its shards on the new mesh from those written on the old one, and writes them again."""
    full, how = values(config), {"shard_weights": shard_weights, "config": config}
    current = write(tmp_path / "0", placed(RING[0], **how), lambda name, window: full[name][window])
    for number, mesh in enumerate(RING[1:], 1):
        stored = Checkpoint(current).tensors
        current = write(tmp_path / str(number), placed(mesh, **how), lambda name, w, s=stored: s[name].read(w))
    again = load_file(current / "rank_0.safetensors")
    assert again.keys() == full.keys()
    for name, value in full.items():
        np.testing.assert_array_equal(again[name], value, strict=True)


@pytest.mark.parametrize(("before", "after"), list(product(RING[:-1], RING[:-1])), ids=str)
def test_any_mesh_from_any_other(before, after, full, tmp_path):
    folder = write(tmp_path, placed(before), lambda name, window: full[name][window])
    stored, opened = Checkpoint(folder).tensors, set()
    for name, placement in placed(after, "all", "model").items():
        for rank in range(placement.layout.devices):
            window = placement.window(rank)
            np.testing.assert_array_equal(stored[name].read(window), full[name][window])
            opened |= {holder for holder, _ in stored[name].sharding.overlapping(window)}
    assert opened == {int(file.stem.split("_")[1]) for file in folder.glob("rank_*.safetensors")}


def test_keys_and_values_of_the_same_heads_are_stored_together(tmp_path):
    """A kv holds all keys, then all values; a shard holds those of its heads, and any window of it is read."""
    full, four = values(GPT3), placed((1, 2, 2), config=GPT3)
    checkpoint = Checkpoint(write(tmp_path, four, lambda name, window: full[name][window]))
    kv, name = full["blocks.1.kv"], "blocks.1.kv"
    assert kv.shape == (48, 128)
    assert checkpoint.tensors[name].sharding == Sharding((48, 128), (24, 64), (0, 1, 0, 1, 2, 3, 2, 3), parts=2)
    shard = load_file(checkpoint.folder / "rank_3.safetensors")[name]  # rows 24 to 48 of heads 2 and 3
    np.testing.assert_array_equal(shard, np.concatenate([kv[24:, 32:64], kv[24:, 96:]], axis=1))
    for window in ((slice(3, 40), slice(20, 110)), (slice(0, 1), slice(63, 65)), (slice(0, 48), slice(0, 128))):
        np.testing.assert_array_equal(checkpoint.tensors[name].read(window), kv[window])
    manifest = json.loads((checkpoint.folder / "manifest.json").read_text())
    assert [len(slicing) for slicing in manifest["slicings"]].count(4) == 1  # other entries are as they always were


def test_each_shard_is_stored_once_and_read_from_its_file(full, tmp_path):
    folder = write(tmp_path, placed((2, 2, 2)), lambda name, window: full[name][window])
    written = {rank: load_file(folder / f"rank_{rank}.safetensors") for rank in range(4)}
    assert not (folder / "rank_4.safetensors").exists()  # the second pod holds copies
    assert sum(part.size for file in written.values() for part in file.values()) == sum(v.size for v in full.values())
    q_wi = Checkpoint(folder).tensors["blocks.1.q_wi"]
    assert q_wi.sharding == Sharding((48, 448), (24, 224), (0, 1, 2, 3))
    assert [rank for rank, _ in q_wi.sharding.overlapping((slice(0, 24), slice(0, 448)))] == [0, 1]
    assert [rank for rank, _ in q_wi.sharding.overlapping((slice(30, 31), slice(223, 225)))] == [2, 3]


def test_palm_540b_is_read_shard_by_shard():
    """A worker of another mesh knows which of 6,144 files hold its q_wi without opening any."""
    big = PaLMConfig.from_preset("palm_540b", vocab_multiple=3072)
    old, new = (Layout(Mesh(pods, data, model)) for pods, data, model in ((2, 256, 12), (1, 128, 24)))
    before, after = ({p.name: p for p in placements(big, layout)} for layout in (old, new))
    sharding = Sharding.of(before["blocks.0.q_wi"])
    assert len(sharding.ranks) == 3072 and sharding.shard_shape == (72, 13_312)
    parts = list(sharding.overlapping(after["blocks.0.q_wi"].window(29)))
    assert [rank for rank, _ in parts] == [2 * 12 + 2, 3 * 12 + 2]  # rows 144 to 288, shard 5 of 24 along the columns


def test_a_tensor_is_copied_in_blocks(two, full, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 1000)  # bytes: less than six rows of the embedding
    stored = Checkpoint(two / "step_000007").tensors
    sizes = [block.nbytes for block in stored["embedding"].blocks()]
    assert len(sizes) > 10 and max(sizes) <= 1000
    with open(tmp_path / "one.safetensors", "wb") as file:
        write_tensors(file, stored, {"a": "b"})
    again = load_file(tmp_path / "one.safetensors")
    assert all(np.array_equal(again[name], value) and again[name].dtype == value.dtype for name, value in full.items())


def test_neither_reading_nor_exporting_holds_a_full_tensor(tmp_path, monkeypatch):
    """A tensor of 8 MB in two shards: reading takes the bytes of the window, exporting those of a few blocks."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 2**17)
    shape = (8192, 256)
    halves = {"embedding": Placement("embedding", shape, ("vocab", "embed"), Layout(Mesh(1, 1, 2)))}
    folder = write(tmp_path, halves, lambda name, window: np.full((4096, 256), window[0].start, np.float32))
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


def verified(folder):
    """Whether a checkpoint passes all checks before a run resumes from it, and the error message."""
    try:
        Checkpoint(folder).verify()
    except DamagedCheckpoint as error:
        assert "\n" not in str(error)
        return False, str(error)
    return True, ""


def test_200_altered_files(two, tmp_path):
    """Every file with a bit flipped, truncated, extended, missing, or swapped between checkpoints."""
    draw = random.Random(200)
    assert verified(two / "step_000007")[0] and verified(two / "step_000014")[0]
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
        intact, message = verified(folder)
        assert not intact, f"{kind} of {name} was not detected"
        assert name in message or kind == "swap", message
        caught.append(kind)
        shutil.rmtree(folder)
    assert len(caught) == 200 and set(caught) == {"flip", "cut", "grow", "lose", "swap"}


def test_every_byte_of_the_manifest_is_verified(two, tmp_path):
    """Even bytes that do not change the manifest's content."""
    content, file = (two / "step_000007" / "manifest.json").read_bytes(), tmp_path / "manifest.json"
    for index in range(0, len(content), 5):
        altered = bytearray(content)
        altered[index] = ord("\t") if altered[index] in b" \n" else altered[index] ^ 1
        file.write_bytes(altered)
        with pytest.raises(DamagedCheckpoint, match="does not hold its own SHA-256"):
            module._read_manifest(file)
    file.write_bytes(content)
    assert module._read_manifest(file)["step"] == 7


def test_a_checkpoint_under_the_name_of_another_is_refused(two, tmp_path):
    shutil.copytree(two / "step_000007", tmp_path / "step_000014")
    assert verified(tmp_path / "step_000014") == (
        False,
        f"{tmp_path / 'step_000014'}: its manifest is of step 7, its name is not",
    )


def test_incomplete_checkpoints_are_ignored(two, tmp_path):
    assert steps_in(two) == [14, 7]
    assert steps_in(tmp_path / "nowhere") == []
    for name in ("step_000009.tmp", "step_000007.damaged", "step_12", "other"):
        (tmp_path / name).mkdir()
    assert steps_in(tmp_path) == []


def test_a_failed_write_leaves_no_visible_checkpoint(full, tmp_path, monkeypatch):
    """Whichever file cannot be written."""
    write_one, two_workers = module.write_atomically, placed((1, 2, 1))
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
                write(folder, two_workers, lambda name, window: full[name][window])
            assert steps_in(folder) == []
        else:
            assert verified(write(folder, two_workers, lambda name, window: full[name][window]))[0]
    assert {"rank_1.safetensors", "state.json", "manifest.json"} <= set(names)


def test_other_versions_of_the_format_are_refused_by_name(two, tmp_path, monkeypatch):
    folder = shutil.copytree(two / "step_000007", tmp_path / "step_000007")
    monkeypatch.setattr(module, "CHECKPOINT_FORMAT", "mindspore_palm checkpoint 2")
    with pytest.raises(UserError, match="is of the format 'mindspore_palm checkpoint 1'"):
        Checkpoint(folder)


def test_neighbours_on_the_ring_differ():
    assert all(a != b for a, b in pairwise(RING)) and len(set(RING)) == 7

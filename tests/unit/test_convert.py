"""Conversion from and to formats that need no other package: exact to the bit, checked before it is kept."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from parity.twins import ODD, logits_of, relative, weights_of
from reference.palm import HIGHEST, rms_norm, rope
from safetensors.numpy import load_file, save_file

from mindspore_palm import PaLMConfig
from mindspore_palm.errors import UserError

SWITCHES = {
    "palm": {},
    "other norms": {
        "norm": "layer_norm",
        "norm_epsilon": 1e-3,
        "norm_scale": "around_one",
        "final_norm_scale": True,
        "scaled_logits": False,
    },
}


@pytest.fixture(scope="module")
def convert(device):
    """``convert`` with defaults; source and target are (format, path) or a folder of this package. Returns lines."""
    from mindspore_palm.convert.convert import NATIVE, convert
    from mindspore_palm.convert.model import Options

    def run(source, target, shape=(2, 12), **more):
        names = [name for name in more if name in Options.__annotations__]
        options = Options(shape=shape, **{name: more.pop(name) for name in names})
        sides = [side if isinstance(side, tuple) else (NATIVE, side) for side in (source, target)]
        lines = []
        convert(*sides, options, lines.append, **more)
        return lines

    return run


@pytest.fixture(scope="module")
def folders(device, tokenizer, tmp_path_factory):
    """Folders of this package, by the names of SWITCHES, with random weights, scales included."""
    from mindspore_palm.convert.model import Options
    from mindspore_palm.convert.native import Native

    home = tmp_path_factory.mktemp("ours")
    for name, switches in SWITCHES.items():
        Native().write(random_model(tokenizer, **switches), home / name, Options())
    return {name: home / name for name in SWITCHES}


@pytest.fixture(scope="module")
def palm(folders):
    """The folder of a PaLM without ablations."""
    return folders["palm"]


def random_model(tokenizer, **switches):
    from mindspore_palm.convert.model import Model
    from mindspore_palm.model.weights import placements
    from mindspore_palm.parallel.axes import Layout

    config = PaLMConfig(**{**ODD, "vocab_size": 330, **switches})
    rng = np.random.default_rng(7)
    shapes = {p.name: p.shape for p in placements(config, Layout())}
    weights = {name: (0.2 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    return Model(config, weights, tokenizer.serialized, 77)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_parts_of_the_fused_kernels_by_position(tokenizer):
    """q, gate and up of head 1 are where Google's inference code has them: by head on the last axis, in this order."""
    from mindspore_palm.convert.parts import fuse_kernels, split_kernels

    model = random_model(tokenizer)
    config, weights = model.config, model.weights
    parts = split_kernels(config, weights, 1)
    k, m = config.head_dim, config.mlp_per_head
    column = k + 2 * m  # where head 1 starts
    q_wi, o_wo = weights["blocks.1.q_wi"], weights["blocks.1.o_wo"]
    np.testing.assert_array_equal(parts["q"][:, k : 2 * k], q_wi[:, column : column + k])
    np.testing.assert_array_equal(parts["gate"][:, m : 2 * m], q_wi[:, column + k : column + k + m])
    np.testing.assert_array_equal(parts["up"][:, m : 2 * m], q_wi[:, column + k + m : 2 * column])
    np.testing.assert_array_equal(parts["k"], weights["blocks.1.kv"][:, :k])
    np.testing.assert_array_equal(parts["v"], weights["blocks.1.kv"][:, k:])
    np.testing.assert_array_equal(parts["o"][k : 2 * k], o_wo[k + m : 2 * k + m])
    np.testing.assert_array_equal(parts["down"][m : 2 * m], o_wo[2 * k + m : 2 * (k + m)])
    for name, array in fuse_kernels(config, parts, 1).items():
        np.testing.assert_array_equal(array, weights[name], strict=True)


@pytest.mark.parametrize("name", SWITCHES)
def test_the_check_itself_against_the_reference(folders, name, rng):
    """The NumPy forward pass that checks files computes the same as the JAX reference."""
    from mindspore_palm import load
    from mindspore_palm.convert.forward import logits
    from mindspore_palm.convert.parts import split_kernels

    palm = load(folders[name])
    config, weights = palm.config, {name: np.asarray(array) for name, array in weights_of(palm).items()}
    tokens = rng.integers(0, config.vocab_size, (2, 12)).astype(np.int32)
    blocks = [(weights[f"blocks.{i}.norm.scale"], split_kernels(config, weights, i)) for i in range(config.layers)]
    names = ("norm", "norm_epsilon", "norm_scale", "final_norm_scale", "scaled_logits")
    switches = {name: getattr(config, name) for name in names}
    expected = logits_of(weights, tokens, config, **switches)[..., : config.vocab_size]
    found = logits(config, tokens, weights["embedding"], blocks, weights.get("final_norm.scale"))
    assert relative(found, expected) < 2e-6


@pytest.mark.parametrize("name", SWITCHES)
def test_hugging_face_and_back_is_exact(convert, folders, name, tmp_path):
    lines = convert(folders[name], ("huggingface-safetensors", tmp_path / "there"))
    assert "largest difference" in lines[-1]
    convert(("huggingface-safetensors", tmp_path / "there"), tmp_path / "back")
    assert content(folders[name]) == content(tmp_path / "back")
    described = json.loads((tmp_path / "there" / "config.json").read_text())
    assert (described["num_key_value_heads"], described["head_dim"], described["tie_word_embeddings"]) == (1, 8, True)
    assert described["max_position_embeddings"] == 77
    tensors = load_file(tmp_path / "there" / "model.safetensors")
    ours = load_file(folders[name] / "model.safetensors")
    q = tensors["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(q[8:16], ours["blocks.0.q_wi"].reshape(36, 3, -1)[:, 1, :8].T)  # head 1, [out, in]


def test_hugging_face_in_shards(convert, palm, tmp_path):
    convert(palm, ("huggingface-safetensors", tmp_path / "there"), shard_bytes=40_000)
    index = json.loads((tmp_path / "there" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    shards = {file: load_file(tmp_path / "there" / file) for file in files}
    assert index["weight_map"] == {name: file for file, tensors in shards.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(a.nbytes for tensors in shards.values() for a in tensors.values())
    assert all(len(t) == 1 or sum(a.nbytes for a in t.values()) <= 40_000 for t in shards.values())
    convert(("huggingface-safetensors", tmp_path / "there"), tmp_path / "back")
    assert content(palm) == content(tmp_path / "back")


def fused_decoder(tree, tokens, layers):
    """flaxformer's parallel fused decoder in JAX, with its layer's slices and T5X's names; PaLM's norm and logits."""
    embedding = tree["target/decoder/token_embedder/embedding"]
    x = jnp.asarray(embedding)[tokens]
    for i in range(layers):
        norm, q_wi_kernel, kv_kernel, o_wo_kernel = (
            tree[f"target/decoder/decoder/{name}"][:, i]
            for name in ("layer_norm/scale", "q_wi_fused/kernel", "kv_fused/kernel", "o_wo_fused/kernel")
        )
        head_dim = kv_kernel.shape[-1] // 2
        y = rms_norm(x, norm)
        q_wi = jnp.einsum("bld,dhf->blhf", y, q_wi_kernel, precision=HIGHEST)
        query, wi = q_wi[..., :head_dim], q_wi[..., head_dim:]
        gate, up = jnp.split(wi, 2, axis=-1)
        kv = jnp.einsum("bld,dmf->blmf", y, kv_kernel, precision=HIGHEST)
        key, value = rope(kv[..., :head_dim]), kv[..., head_dim:]
        scores = jnp.einsum("bqhk,btmk->bhqt", rope(query), key, precision=HIGHEST) / np.sqrt(head_dim)
        scores = jnp.where(jnp.tri(tokens.shape[1], dtype=bool), scores, -jnp.inf)
        y_att = jnp.einsum("bhqt,btmk->bqhk", jax.nn.softmax(scores), value, precision=HIGHEST)
        fused = jnp.concatenate([y_att, jax.nn.swish(gate) * up], axis=-1)
        x = x + jnp.einsum("blhf,hfd->bld", fused, o_wo_kernel, precision=HIGHEST)
    return jnp.einsum("bld,vd->blv", rms_norm(x), embedding, precision=HIGHEST) / np.sqrt(x.shape[-1])


def test_flaxformer_and_back_is_exact(convert, tokenizer, tmp_path, rng):
    from mindspore import Tensor

    from mindspore_palm import load
    from mindspore_palm.convert.model import Options
    from mindspore_palm.convert.native import Native

    Native().write(random_model(tokenizer), tmp_path / "ours", Options())
    file = tmp_path / "tree.safetensors"
    convert(tmp_path / "ours", ("flaxformer", file))
    tree = load_file(file)
    assert {name: array.shape for name, array in tree.items()} == {
        "target/decoder/token_embedder/embedding": (336, 36),
        "target/decoder/decoder/layer_norm/scale": (36, 2),
        "target/decoder/decoder/q_wi_fused/kernel": (36, 2, 3, 8 + 2 * 48),
        "target/decoder/decoder/kv_fused/kernel": (36, 2, 1, 16),
        "target/decoder/decoder/o_wo_fused/kernel": (3, 2, 8 + 48, 36),
    }
    tokens = rng.integers(0, 330, (2, 12)).astype(np.int32)
    ours = load(tmp_path / "ours")(Tensor(tokens)).asnumpy()
    assert relative(ours, fused_decoder(tree, tokens, 2)[..., :330]) < 2e-6

    by_layer = {}
    for name, array in tree.items():
        parts = name.split("/decoder/decoder/")
        if len(parts) == 1:
            by_layer[name.replace("target/", "optimizer/target/")] = array
        for i in range(2 if len(parts) == 2 else 0):
            by_layer[f"optimizer/target/decoder/layers_{i}/{parts[1]}"] = np.ascontiguousarray(array[:, i])
    save_file(by_layer, tmp_path / "layers.safetensors")
    options = {"tokenizer": tmp_path / "ours" / "tokenizer.model", "vocab_size": 330, "seq_len": 77}
    for source in (file, tmp_path / "layers.safetensors"):
        convert(("flaxformer", source), tmp_path / "back", overwrite=True, **options)
        for name, array in load_file(tmp_path / "back" / "model.safetensors").items():
            np.testing.assert_array_equal(array, load_file(tmp_path / "ours" / "model.safetensors")[name], strict=True)
        assert load(tmp_path / "back").config.padded_vocab == 336

    short = {name: array.astype(ml_dtypes.bfloat16) for name, array in tree.items()}
    save_file(short, tmp_path / "short.safetensors")
    convert(("flaxformer", tmp_path / "short.safetensors"), tmp_path / "of bfloat16")
    kv = load_file(tmp_path / "of bfloat16" / "model.safetensors")["blocks.1.kv"]
    expected = short["target/decoder/decoder/kv_fused/kernel"][:, 1].reshape(36, 16).astype(np.float32)
    np.testing.assert_array_equal(kv, expected)


RUN_GRAPH = """
import sys
import mindspore as ms
import numpy as np
ms.set_context(mode=ms.GRAPH_MODE)
graph = ms.nn.GraphCell(ms.load(sys.argv[1]))
np.save(sys.argv[3], graph(ms.Tensor(np.load(sys.argv[2]))).asnumpy())
assert "mindspore_palm" not in sys.modules
"""


def test_bfloat16_without_ml_dtypes(tmp_path, monkeypatch):
    """NumPy itself has no bfloat16."""
    from mindspore_palm.checkpoint import model_folder

    def unknown(file):
        raise TypeError("data type 'bfloat16' not understood")

    monkeypatch.setattr(model_folder, "load_file", unknown)
    with pytest.raises(UserError, match="pip install ml_dtypes"):
        model_folder.read_weights(tmp_path / "short.safetensors")


def test_mindir_runs_without_this_package(convert, palm, tmp_path, rng):
    from mindspore import Tensor

    from mindspore_palm import load
    from mindspore_palm.parallel.fused import portable

    file = tmp_path / "palm.mindir"
    assert "largest difference 0," in convert(palm, ("mindir", file))[-1]
    tokens = rng.integers(0, 330, (2, 12)).astype(np.int32)
    np.save(tmp_path / "tokens.npy", tokens)
    command = [sys.executable, "-c", RUN_GRAPH, file, tmp_path / "tokens.npy", tmp_path / "logits.npy"]
    subprocess.run(command, check=True, timeout=120, cwd=tmp_path, capture_output=True)
    with portable():
        network = load(palm)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), network(Tensor(tokens)).asnumpy())


def test_a_mindir_of_more_than_a_gigabyte_is_refused(tokenizer, tmp_path):
    from mindspore_palm.convert.mindir import MindIR
    from mindspore_palm.convert.model import Options

    model = random_model(tokenizer)
    model.weights["embedding"] = np.broadcast_to(np.float32(0), (2**28, 1))  # a GiB without taking memory
    with pytest.raises(UserError, match=r"1\.1 GB of weights; one MindIR file holds at most 1 GB"):
        MindIR().write(model, tmp_path / "palm.mindir", Options())
    assert list(tmp_path.iterdir()) == []


def test_twice_the_width_is_the_same_function(convert, palm, tmp_path):
    """Activations are small, so that a wrong epsilon of the layer norm would show."""
    lines = convert(palm, tmp_path / "wide", wide=True)
    assert "d_model 72" in lines[0]
    difference, largest = (float(word.split()[2]) for word in lines[-1].split(": ")[-1].split(", "))
    assert difference < 3e-6 * largest


def test_a_wrong_mapping_is_not_kept(convert, palm, tmp_path, monkeypatch):
    from mindspore_palm.convert import huggingface

    def swapped(config, weights, block):
        parts = huggingface_split_kernels(config, weights, block)
        return {**parts, "gate": parts["up"], "up": parts["gate"]}

    huggingface_split_kernels = huggingface.split_kernels
    monkeypatch.setattr(huggingface, "split_kernels", swapped)
    with pytest.raises(UserError, match=r"differ: largest difference .*; nothing was kept"):
        convert(palm, ("huggingface-safetensors", tmp_path / "there"))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(convert, folders, tmp_path, monkeypatch):
    from mindspore_palm.convert import flaxformer

    file = tmp_path / "tree.safetensors"
    file.write_text("mine")
    with pytest.raises(UserError, match="exists already; choose another name, or replace it with --overwrite"):
        convert(folders["palm"], ("huggingface-safetensors", file))
    with pytest.raises(UserError, match=r"trained with model.norm=rms_norm \(here layer_norm\)"):
        convert(folders["other norms"], ("flaxformer", file), overwrite=True)

    def fail(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(flaxformer, "write_atomically", fail)
    with pytest.raises(OSError, match="No space left"):
        convert(folders["palm"], ("flaxformer", file), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["tree.safetensors"]
    assert file.read_text() == "mine"


def test_fortran_order_is_written_as_it_reads(device, tokenizer, tmp_path):
    """safetensors writes memory as it is: a transposed kernel would silently be written wrong."""
    from mindspore_palm.convert.model import Options
    from mindspore_palm.convert.native import Native

    model = random_model(tokenizer)
    model.weights["blocks.0.kv"] = np.asfortranarray(model.weights["blocks.0.kv"])
    Native().write(model, tmp_path / "there", Options())
    written = load_file(tmp_path / "there" / "model.safetensors")
    np.testing.assert_array_equal(written["blocks.0.kv"], model.weights["blocks.0.kv"])


TREE = "target/decoder"
KV, O_WO, LOGITS = (f"{TREE}/{name}/kernel" for name in ("decoder/kv_fused", "decoder/o_wo_fused", "logits_dense"))


@pytest.mark.parametrize(
    ("name", "array", "problem"),
    [
        (f"{TREE}/token_embedder/embedding", None, "there is no decoder/token_embedder/embedding"),
        (KV, None, "decoder/decoder/kv_fused/kernel is missing"),
        (f"{TREE}/token_embedder/embedding", np.zeros(3, np.float32), "is [3], not [V, D]"),
        (f"{TREE}/decoder/layer_norm/scale", np.array(1, np.float32), "layer_norm/scale is missing"),
        (LOGITS, np.zeros((3, 3)), "logits_dense/kernel is float64"),
        (LOGITS, np.zeros((3, 3), np.float32), "no place for decoder/logits_dense/kernel"),
        (KV, np.zeros((36, 2, 1, 16), np.int8), "not quantised"),
        (KV, np.zeros((36, 3, 1, 16), np.float32), "its axis 1 must be the 2 layers"),
        (O_WO, np.zeros((3, 2, 9), np.float32), "not [D, H, K + 2F/H]"),
        (KV, np.zeros((36, 2, 1, 12), np.float32), "of layer 0 is [36, 3, 104], not"),
        (f"{TREE}/decoder/layer_norm/scale", np.ones((36, 2), np.float32), "scales have a mean of 1.00"),
    ],
)
def test_invalid_trees_are_refused(tokenizer, tmp_path, name, array, problem):
    from mindspore_palm.convert.flaxformer import Flaxformer
    from mindspore_palm.convert.model import Options

    file = tmp_path / "tree.safetensors"
    Flaxformer().write(random_model(tokenizer), file, Options())
    tree = load_file(file)
    tree.pop(name, None)
    save_file(tree if array is None else {**tree, name: array}, file)
    with pytest.raises(UserError) as caught:
        Flaxformer().read(file, Options())
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        ("config.json", lambda text: "{", "this is not JSON"),
        ("config.json", lambda text: "[]", "expected an object"),
        ("config.json", lambda text: '{"model_type": "llama"}', "no section 'mindspore_palm'"),
        ("config.json", lambda text: text.replace('"heads": 3', '"heads": 4'), "num_attention_heads is 3, and section"),
        ("config.json", lambda text: text.replace('heads": 3', 'heads": 4'), "q_proj.weight is float32 [24, 36]"),
        ("config.json", lambda text: text.replace('"heads": 3', '"heads": "many"'), "model.heads"),
        (INDEX, lambda text: "{}", "no 'weight_map'"),
        (INDEX, lambda text: '{"weight_map": {"a": "../b"}}', "../b is not a file of this folder"),
        (INDEX, lambda text: '{"weight_map": {"a": "b"}}', "there is no"),
        (INDEX, lambda text: '{"weight_map": {}}', "model.embed_tokens.weight is missing"),
    ],
)
def test_invalid_folders_are_refused(tokenizer, tmp_path, file, change, problem):
    from mindspore_palm.convert.huggingface import HuggingFace
    from mindspore_palm.convert.model import Options

    HuggingFace().write(random_model(tokenizer), tmp_path / "there", Options())
    path = tmp_path / "there" / file
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError) as caught:
        HuggingFace().read(tmp_path / "there", Options())
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)

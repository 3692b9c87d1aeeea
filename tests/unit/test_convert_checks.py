"""Checks after a conversion, and of a folder in Hugging Face style: no side is its own proof."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from unit.test_convert import INDEX, random_model

from mindspore_palm.errors import UserError


@pytest.fixture(scope="module")
def convert(device):
    """``convert`` with defaults; source and target are (format, path) or a folder of this package. Returns lines."""
    from mindspore_palm.convert.convert import NATIVE, convert
    from mindspore_palm.convert.model import Options

    def run(source, target, vocab_size=None, **more):
        sides = [side if isinstance(side, tuple) else (NATIVE, side) for side in (source, target)]
        lines = []
        convert(*sides, Options(shape=(2, 12), vocab_size=vocab_size), lines.append, **more)
        return lines

    return run


@pytest.fixture(scope="module")
def palm(device, tokenizer, tmp_path_factory):
    """A folder of this package with a PaLM of random weights, scales included."""
    from mindspore_palm.convert.model import Options
    from mindspore_palm.convert.native import Native

    folder = tmp_path_factory.mktemp("ours") / "palm"
    Native().write(random_model(tokenizer), folder, Options())
    return folder


def write_hugging_face(tokenizer, folder):
    from mindspore_palm.convert.huggingface import HuggingFace
    from mindspore_palm.convert.model import Options

    HuggingFace().write(random_model(tokenizer), folder, Options())
    return folder


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_theta", 500000.0),
        ("rms_norm_eps", 1e-5),
        ("hidden_act", "gelu"),
        ("tie_word_embeddings", False),
        ("num_key_value_heads", 3),
        ("vocab_size", 336),
        ("rope_scaling", {"type": "linear", "factor": 4.0}),
        ("quantization_config", {"bits": 4}),
        ("attention_bias", True),
    ],
)
def test_a_field_of_a_different_model_is_refused(tokenizer, tmp_path, field, value):
    """config.json has all sizes twice: a tool that reads the usual fields must see the same as this package."""
    from mindspore_palm.convert.huggingface import HuggingFace
    from mindspore_palm.convert.model import Options

    folder = write_hugging_face(tokenizer, tmp_path / "there")
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, field: value}))
    with pytest.raises(UserError) as caught:
        HuggingFace().read(folder, Options())
    assert f"{folder / 'config.json'}: {field} is " in str(caught.value)


def test_hugging_face_folders_that_tools_changed(tokenizer, tmp_path):
    """No index for one file; half precision; the tied table twice; fields that change nothing."""
    from mindspore_palm.convert.huggingface import HuggingFace
    from mindspore_palm.convert.model import Options

    folder = write_hugging_face(tokenizer, tmp_path / "there")
    before = HuggingFace().read(folder, Options())
    (folder / INDEX).unlink()
    described = json.loads((folder / "config.json").read_text())
    more = {"transformers_version": "5.0", "use_cache": True, "torch_dtype": "bfloat16", "rope_scaling": None}
    (folder / "config.json").write_text(json.dumps({**described, **more}))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file({name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}, folder / "model.safetensors")
    after = HuggingFace().read(folder, Options())
    for name, array in before.weights.items():
        np.testing.assert_array_equal(after.weights[name], array.astype(ml_dtypes.bfloat16).astype(np.float32))
    tensors["lm_head.weight"] = 2 * tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"no place for lm_head\.weight in a PaLM"):
        HuggingFace().read(folder, Options())


def test_a_tensor_in_another_file_than_the_index_lists(tokenizer, tmp_path):
    """Two files that hold the same name are refused."""
    from mindspore_palm.convert.huggingface import HuggingFace
    from mindspore_palm.convert.model import Options

    HuggingFace().write(random_model(tokenizer), tmp_path / "there", Options(shard_bytes=40_000))
    index = json.loads((tmp_path / "there" / INDEX).read_text())["weight_map"]
    name, home = next(iter(index.items()))
    other = next(file for file in index.values() if file != home)
    tensors = load_file(tmp_path / "there" / other)
    save_file({**tensors, name: load_file(tmp_path / "there" / home)[name] + 1}, tmp_path / "there" / other)
    with pytest.raises(UserError, match=f"{other} holds {name}, which {INDEX} lists in {home}"):
        HuggingFace().read(tmp_path / "there", Options())


def test_two_formats_by_one_numpy_are_compared_with_the_network_as_well(convert, palm, tmp_path, monkeypatch):
    """An error of the code that both sides share would be invisible: here, attention that sees the future."""
    from mindspore_palm.convert import forward

    convert(palm, ("flaxformer", tmp_path / "tree.safetensors"))
    source, target = ("flaxformer", tmp_path / "tree.safetensors"), ("huggingface-safetensors", tmp_path / "there")
    lines = convert(source, target, vocab_size=330)
    compared = next(line for line in lines if line.startswith("compared: "))
    assert compared.count("NumPy code of this package") == 2
    assert compared.endswith("and, as both are by NumPy, the network of this package")
    monkeypatch.setattr(
        forward, "_attention", lambda q, k, v: np.repeat(v[:, :, None], q.shape[2], 2).reshape(2, 12, -1)
    )
    with pytest.raises(UserError, match="differ: largest difference"):
        convert(source, target, vocab_size=330, overwrite=True)


@pytest.mark.parametrize("target", ["huggingface-safetensors", "flaxformer", "mindir", "mindspore_palm"])
def test_a_model_of_nan_is_refused_and_never_exported(convert, tokenizer, tmp_path, target):
    from mindspore_palm.convert.model import Options
    from mindspore_palm.convert.native import Native

    model = random_model(tokenizer)
    model.weights["blocks.1.kv"][4, 2] = np.nan
    Native().write(model, tmp_path / "ours", Options())
    with pytest.raises(UserError, match=r"ours: blocks\.1\.kv holds 1 of 576 numbers that are not finite"):
        convert(tmp_path / "ours", (target, tmp_path / "out.mindir"))
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_file_that_reads_back_differently_is_not_kept(convert, palm, tmp_path, monkeypatch):
    """The difference is too small to show in the logits."""
    from mindspore_palm.convert import huggingface

    def nearly(config, weights, block):
        parts = split_kernels(config, weights, block)
        return {**parts, "o": parts["o"] * np.float32(1 + 1e-6)}

    split_kernels = huggingface.split_kernels
    monkeypatch.setattr(huggingface, "split_kernels", nearly)
    with pytest.raises(UserError, match=r"would be read back with a different blocks\.\d\.o_wo; nothing was kept"):
        convert(palm, ("huggingface-safetensors", tmp_path / "there"))
    assert list(tmp_path.iterdir()) == []

"""Files of PyTorch's PaLMs, read without PyTorch: everything in them is checked."""

from __future__ import annotations

import importlib.util
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from unit.foreign import FORMATS, K, first, logits_of, save, save_typed, state_of

from mindspore_palm.errors import UserError

TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture(params=FORMATS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def convert(device):
    from mindspore_palm.convert.convert import convert
    from mindspore_palm.convert.model import Options

    def run(source, target, **more):
        lines = []
        options = {key: more.pop(key) for key in list(more) if key in Options.__annotations__}
        convert(source, target, Options(shape=(2, 12), **options), lines.append, **more)
        return lines

    return run


@pytest.fixture
def refused(convert, tmp_path):
    """Converts a file that must be refused, and returns the message."""

    def run(source, **more):
        with pytest.raises(UserError) as caught:
            convert(source, ("mindspore_palm", tmp_path / "ours"), **more)
        assert not (tmp_path / "ours").exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


def weights_in(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.skipif(TORCH, reason="where the package is installed, it computes the logits itself")
def test_without_its_package_numpy_computes_and_the_output_says_so(convert, name, tmp_path, rng):
    from mindspore import Tensor

    from mindspore_palm import load

    state = state_of(name)
    lines = convert((name, save(state, tmp_path / "palm.safetensors")), ("mindspore_palm", tmp_path / "ours"))
    compared = next(line for line in lines if line.startswith("compared: "))
    assert "NumPy code of this package from the file's tensors and inv_freq, as PaLM-" in compared
    assert "is not installed" in compared and "ours by the network of this package" in compared
    tokens = rng.integers(0, 61, (2, 20)).astype(np.int32)
    expected = logits_of(name, state, tokens)
    found = load(tmp_path / "ours")(Tensor(tokens)).asnumpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    difference = float(lines[-1].split("largest difference ")[1].split(",")[0])
    assert difference < 1e-5 * np.abs(expected).max()


def test_the_check_by_numpy_itself_reads_the_frequencies_of_the_file(device, name, tmp_path, rng, monkeypatch):
    """Without the check of buffers, the logits still differ: 1.2 instead of 1 rotates every head."""
    from mindspore_palm.convert import fused_linear
    from mindspore_palm.convert.convert import FORMATS as ALL
    from mindspore_palm.convert.model import Options

    monkeypatch.setattr(fused_linear, "check_frequencies", lambda *_: "")
    monkeypatch.setattr(fused_linear, "is_installed", lambda _: False)
    state = state_of(name)
    state = {key: 1.2 * array if key.endswith("inv_freq") else array for key, array in state.items()}
    tokens = rng.integers(0, 61, (2, 20)).astype(np.int32)
    found = ALL[name].logits(save(state, tmp_path / "palm.safetensors"), tokens, Options())
    expected = logits_of(name, state, tokens)
    assert np.abs(found.logits - expected).max() < 1e-5 * np.abs(expected).max()


def causal(n):
    return np.triu(np.ones((n, n), bool), 1)


def positions(n):
    half = np.outer(np.arange(n), 1 / 10000 ** (np.arange(0, K, 2) / K))
    return np.concatenate([half, half], -1).astype(np.float32)


@pytest.mark.parametrize(
    ("leaf", "array", "problem"),
    [
        ("rotary_emb.inv_freq", 1 / 500000 ** (np.arange(0, K, 2) / K), "has base 500,000"),
        ("rotary_emb.inv_freq", 1 / 10000 ** (np.arange(0, K, 2) / K) / 4, "has 0.25 at 0 instead of 1"),
        ("rotary_emb.inv_freq", 1 / 10010 ** (np.arange(0, K, 2) / K), "has base 10,010"),
        ("rotary_emb.inv_freq", np.full(K // 2, np.nan), "nan at 0 instead of 1"),
        ("rotary_emb.inv_freq", np.zeros(K), "is [6], not [3]"),
        ("mask", ~causal(8), "not a causal mask"),
        ("mask", np.zeros((8, 8), bool), "not a causal mask"),
        ("pos_emb", 2 * positions(8), "not what PaLM's rotation has at these positions"),
        ("norm.beta", np.full(24, 0.1), "PaLM's norms have no bias"),
        ("attn_out.bias", np.zeros(24), "no place for"),
        ("fused_attn_ff_proj.bias", np.zeros(120), "no place for"),
        ("rotary_emb.offset", np.zeros(3), "no place for"),
        ("num_batches", np.zeros((), np.int64), "no place for"),
    ],
)
def test_a_buffer_that_is_not_palms_is_refused_by_name(refused, name, tmp_path, leaf, array, problem):
    state = state_of(name)
    block = first(state, ".attn_out.weight").removesuffix("attn_out.weight")
    state[block + leaf] = array.astype(np.float32) if array.dtype == np.float64 else array
    message = refused((name, save(state, tmp_path / "palm.safetensors")))
    assert problem in message
    assert block + leaf in message
    assert "palm.safetensors" in message


def test_the_decay_of_xpos_is_read_too(refused, tmp_path):
    state = state_of("conceptofmind")
    state[first(state, "rotary_emb.scale")] *= np.float32(1.1)
    assert "layers.0.fn.rotary_emb.scale is not" in refused(("conceptofmind", save(state, tmp_path / "p.safetensors")))
    state = state_of("lucidrains")
    state["1.fn.rotary_emb.scale"] = np.ones(3, np.float32)  # PaLM-pytorch has none
    assert "no place for 1.fn.rotary_emb.scale" in refused(("lucidrains", save(state, tmp_path / "p.safetensors")))


@pytest.mark.parametrize("rounding", [ml_dtypes.bfloat16, np.float16])
def test_frequencies_rounded_with_the_weights_are_noted(convert, name, tmp_path, rounding):
    state = state_of(name)
    plain = {key: array.astype(rounding).astype(np.float32) for key, array in state.items()}
    plain |= {key: array for key, array in state.items() if "rotary_emb" in key}
    short = {key: array.astype(rounding) for key, array in state.items()}
    convert((name, save(plain, tmp_path / "plain.safetensors")), ("mindspore_palm", tmp_path / "plain"))
    lines = convert((name, save(short, tmp_path / "short.safetensors")), ("mindspore_palm", tmp_path / "short"))
    assert any(f"inv_freq rounded to {np.dtype(rounding).name}" in line for line in lines if line.startswith("note: "))
    for key, array in weights_in(tmp_path / "plain").items():
        np.testing.assert_array_equal(weights_in(tmp_path / "short")[key], array, strict=True)


def test_caches_that_an_older_version_saved_are_read(convert, name, tmp_path):
    state = state_of(name)
    block = first(state, ".attn_out.weight").removesuffix("attn_out.weight")
    plain = save(state, tmp_path / "plain.safetensors")
    more = save({**state, f"{block}mask": causal(8), f"{block}pos_emb": positions(8)}, tmp_path / "more.safetensors")
    for file in (plain, more):
        convert((name, file), ("mindspore_palm", tmp_path / file.stem))
    for key, array in weights_in(tmp_path / "plain").items():
        np.testing.assert_array_equal(weights_in(tmp_path / file.stem)[key], array, strict=True)


WRAPPED = {
    "torch.compile": "_orig_mod.{}",
    "DistributedDataParallel": "module.{}",
    "Lightning": "model.{}",
    "Lightning around a generating wrapper": "model.net.{}",
    "compiled inside Lightning": "model._orig_mod.{}",
    "distributed, compiled": "module._orig_mod.{}",
    "FSDP": "_fsdp_wrapped_module.{}",
    "any other": "palm.network.{}",
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_names_inside_a_wrapper_are_read_to_the_same_bits(convert, name, tmp_path, wrapper):
    state = state_of(name)
    wrapped = {WRAPPED[wrapper].format(key): array for key, array in state.items()}
    convert((name, save(wrapped, tmp_path / "palm.safetensors")), ("mindspore_palm", tmp_path / "ours"))
    fused = first(state, "fused_attn_ff_proj.weight")
    kv = state[fused][18:30].T  # 3 heads of 6 rows for q, then k and v
    np.testing.assert_array_equal(weights_in(tmp_path / "ours")["blocks.0.kv"], kv)


def test_compiled_blocks_inside_a_network_are_read(convert, name, tmp_path):
    state = state_of(name)
    inside = {key.replace(".fn.", ".fn._orig_mod."): array for key, array in state.items()}
    convert((name, save(inside, tmp_path / "palm.safetensors")), ("mindspore_palm", tmp_path / "ours"))


def test_two_networks_in_one_file_are_named(refused, name, tmp_path):
    state = state_of(name)
    both = {f"{prefix}.{key}": array for key, array in state.items() for prefix in ("online", "ema")}
    message = refused((name, save(both, tmp_path / "palm.safetensors")))
    assert "several networks, under 'ema.' and 'online.'" in message
    twice = state | {f"_orig_mod.{key}": array for key, array in state.items()}
    assert "twice" in refused((name, save(twice, tmp_path / "palm.safetensors")))
    beside = {f"model.{key}": array for key, array in state.items()} | {"loss.scale": np.ones(1, np.float32)}
    assert "no place for loss.scale" in refused((name, save(beside, tmp_path / "palm.safetensors")))


@pytest.mark.parametrize("kept", ["table", "logits"])
@pytest.mark.parametrize("in_metadata", [True, False])
def test_a_tied_table_may_have_one_of_its_names(convert, name, tmp_path, kept, in_metadata):
    state, names = state_of(name), FORMATS[name]
    left_out = names["logits" if kept == "table" else "table"]
    table = state.pop(left_out)
    metadata = {left_out: names[kept], "format": "pt"} if in_metadata else None
    convert((name, save(state, tmp_path / "palm.safetensors", metadata)), ("mindspore_palm", tmp_path / "ours"))
    np.testing.assert_array_equal(weights_in(tmp_path / "ours")["embedding"], table)


def test_tied_scales_are_found_by_the_metadata(convert, name, tmp_path):
    state = state_of(name)
    one, other = (key for key in state if key.endswith("fn.norm.gamma"))
    gamma = state.pop(other)
    state[one] = gamma
    convert((name, save(state, tmp_path / "p.safetensors", {other: one})), ("mindspore_palm", tmp_path / "ours"))
    for i in range(2):
        np.testing.assert_array_equal(weights_in(tmp_path / "ours")[f"blocks.{i}.norm.scale"], gamma)


def in_shards(state, folder, change=lambda index: None):
    folder.mkdir()
    index, items = {"weight_map": {}}, list(state.items())
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        save(dict(items[number::3]), folder / file)
        index["weight_map"] |= dict.fromkeys(dict(items[number::3]), file)
    change(index["weight_map"])
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_files_with_an_index_are_read(convert, refused, name, tmp_path):
    state = state_of(name)
    single = save(state, tmp_path / "single.safetensors")
    folder = in_shards(state, tmp_path / "shards")
    for number, path in enumerate((single, folder, folder / "model.safetensors.index.json")):
        convert((name, path), ("mindspore_palm", tmp_path / str(number)))
    for number in (1, 2):
        for key, array in weights_in(tmp_path / "0").items():
            np.testing.assert_array_equal(weights_in(tmp_path / str(number))[key], array, strict=True)
    gamma = first(state, "gamma")
    moved = in_shards(
        state, tmp_path / "moved", lambda files: files.update({gamma: "model-00001-of-00003.safetensors"})
    )
    assert f"holds {gamma}, which" in refused((name, moved))
    unlisted = in_shards(state, tmp_path / "unlisted", lambda files: files.pop(gamma))
    assert f"holds {gamma}, which" in refused((name, unlisted))
    more = in_shards(state, tmp_path / "more", lambda files: files.update({"x": "model-00001-of-00003.safetensors"}))
    assert "x is not in model-00001-of-00003.safetensors" in refused((name, more))
    gone = in_shards(state, tmp_path / "gone")
    (gone / "model-00002-of-00003.safetensors").unlink()
    assert "there is no" in refused((name, gone))
    (tmp_path / "bare").mkdir()
    assert "is a folder without model.safetensors" in refused((name, tmp_path / "bare"))


LACKING = {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F4": 0.5, "F6_E2M3": 0.75}


@pytest.mark.parametrize("kind", LACKING)
def test_dtypes_that_numpy_lacks_are_named(refused, name, tmp_path, kind):
    from mindspore_palm.checkpoint.model_folder import read_weights

    state = state_of(name)
    kernel = first(state, "fused_attn_ff_proj.weight")
    file = save_typed(state, tmp_path / "palm.safetensors", kernel, kind, LACKING[kind])
    assert f"{kernel} is {kind}, which NumPy lacks" in refused((name, file))
    assert f"{kernel} is {kind}, which NumPy lacks" in refused(("flaxformer", file))
    with pytest.raises(UserError, match=f"is {kind}, which NumPy lacks"):
        read_weights(file)


@pytest.mark.parametrize("dtype", [np.complex64, np.float64, np.int8, np.uint8, bool])
def test_other_dtypes_are_named(refused, name, tmp_path, dtype):
    state = state_of(name)
    kernel = first(state, "fused_attn_ff_proj.weight")
    state[kernel] = state[kernel].astype(dtype)
    message = refused((name, save(state, tmp_path / "palm.safetensors")))
    assert f"{kernel} is {np.dtype(dtype)}; weights must be float32" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(refused, name, tmp_path, value):
    state = state_of(name)
    state[first(state, "attn_out.weight")][3, 5] = value
    message = refused((name, save(state, tmp_path / "palm.safetensors")))
    assert "blocks.0.o_wo holds 1 of " in message
    assert "not finite" in message

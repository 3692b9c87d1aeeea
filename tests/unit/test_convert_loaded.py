"""Files of PyTorch's PaLMs, loaded by the packages themselves, and as training scripts save them: -m torch."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from unit.foreign import FORMATS, first, state_of

from mindspore_palm.errors import UserError

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def torch():
    import torch  # pip install -r tests/requirements-torch.txt

    return torch


@pytest.fixture(params=FORMATS)
def name(request):
    return request.param


@pytest.fixture
def state(torch, name):
    """A state_dict as the package saves it."""
    return {key: torch.from_numpy(array) for key, array in state_of(name).items()}


@pytest.fixture(scope="module")
def convert(device):
    from mindspore_palm.convert.convert import convert
    from mindspore_palm.convert.model import Options

    def run(source, target, **more):
        lines = []
        convert(source, target, Options(shape=(2, 12)), lines.append, **more)
        return lines

    return run


@pytest.fixture
def refused(torch, convert, name, tmp_path):
    """Converts a file that must be refused, and returns the message."""

    def run(content):
        torch.save(content, tmp_path / "palm.pt")
        with pytest.raises(UserError) as caught:
            convert((name, tmp_path / "palm.pt"), ("mindspore_palm", tmp_path / "ours"))
        assert not (tmp_path / "ours").exists()
        assert "\n" not in str(caught.value)
        assert "palm.pt" in str(caught.value)
        return str(caught.value)

    return run


def weights_in(folder):
    return load_file(folder / "model.safetensors")


def network_of(name):
    """The package's own network, with the sizes of ``state_of``."""
    from importlib import import_module

    package = import_module({"lucidrains": "palm_pytorch", "conceptofmind": "palm_rlhf_pytorch"}[name])
    return package.PaLM(num_tokens=61, dim=24, depth=2, dim_head=6, heads=3, ff_mult=2).eval()


def test_the_package_loads_the_file_and_the_output_says_so(torch, convert, name, state, tmp_path):
    torch.save(state, tmp_path / "palm.pt")
    lines = convert((name, tmp_path / "palm.pt"), ("mindspore_palm", tmp_path / "ours"))
    package = {"lucidrains": "PaLM-pytorch 0.2.2", "conceptofmind": "PaLM-rlhf-pytorch 0.8.0"}[name]
    compared = next(line for line in lines if line.startswith("compared: "))
    assert f"palm.pt by {package}, which loaded the file with its buffers; " in compared
    lines = convert(("mindspore_palm", tmp_path / "ours"), (name, tmp_path / "back.pt"))
    assert any(f"back.pt by {package}, which loaded the file" in line for line in lines)


def test_other_frequencies_are_refused_by_name(torch, refused, state):
    key = first(state, "inv_freq")
    message = refused({**state, key: 1 / 500000 ** (torch.arange(0, 6, 2) / 6)})
    assert f"{key} has base 500,000" in message


def test_the_logits_alone_find_other_frequencies(torch, convert, name, state, tmp_path, monkeypatch):
    """The two checks are independent: without the check of buffers, logits of the loaded file still differ."""
    from mindspore_palm.convert import fused_linear

    monkeypatch.setattr(fused_linear, "check_frequencies", lambda *_: "")
    torch.save({**state, first(state, "inv_freq"): torch.tensor([1.0, 0.3, 0.01])}, tmp_path / "palm.pt")
    with pytest.raises(UserError, match="differ: largest difference"):
        convert((name, tmp_path / "palm.pt"), ("mindspore_palm", tmp_path / "ours"))


def test_the_file_that_is_exported_is_the_one_that_is_checked(torch, convert, name, state, tmp_path, monkeypatch):
    """A fault between the network in memory and the file on disk."""
    torch.save(state, tmp_path / "palm.pt")
    convert((name, tmp_path / "palm.pt"), ("mindspore_palm", tmp_path / "ours"))
    save = torch.save

    def altered(content, file):
        key = first(content, "attn_out.weight")
        save({**content, key: content[key].flip(0)}, file)

    monkeypatch.setattr(torch, "save", altered)
    with pytest.raises(UserError, match="differ: largest difference"):
        convert(("mindspore_palm", tmp_path / "ours"), (name, tmp_path / "back.pt"))
    assert not (tmp_path / "back.pt").exists()


def test_a_difference_that_logits_hide_is_found_in_the_bits(torch, convert, name, state, tmp_path, monkeypatch):
    torch.save(state, tmp_path / "palm.pt")
    convert((name, tmp_path / "palm.pt"), ("mindspore_palm", tmp_path / "ours"))
    save = torch.save

    def altered(content, file):
        key = first(content, "attn_out.weight")
        save({**content, key: content[key] * (1 + 1e-6)}, file)

    monkeypatch.setattr(torch, "save", altered)
    with pytest.raises(UserError, match="would be read back with a different"):
        convert(("mindspore_palm", tmp_path / "ours"), (name, tmp_path / "back.pt"))


LACKING = {
    "float8_e4m3fn": lambda t, torch: t.to(torch.float8_e4m3fn),
    "float8_e5m2": lambda t, torch: t.to(torch.float8_e5m2),
    "quantised (qint8)": lambda t, torch: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "on the meta device": lambda t, torch: t.to("meta"),
    "sparse": lambda t, torch: t.to_sparse(),
    "sparse or nested": lambda t, torch: t.to_sparse_csr(),
    "complex64": lambda t, torch: t.to(torch.complex64),
    "is bool": lambda t, torch: t > 0,
    "is int8": lambda t, torch: t.to(torch.int8),
    "is float64": lambda t, torch: t.double(),
}


@pytest.mark.parametrize("problem", LACKING)
def test_tensors_without_dense_values_are_named(torch, refused, state, problem):
    key = first(state, "fused_attn_ff_proj.weight")
    message = refused({**state, key: LACKING[problem](state[key], torch)})
    assert problem in message
    assert key in message


def test_strides_and_views_are_read_by_value(torch, convert, name, state, tmp_path):
    """A conjugate, a negative view, a transposed kernel: the values, not the bytes."""
    torch.save(state, tmp_path / "plain.pt")
    key = first(state, "attn_out.weight")
    views = {**state, key: state[key].T.contiguous().T}
    negative = first(state, "fused_attn_ff_proj.weight")
    views[negative] = torch._neg_view(-state[negative])
    torch.save({k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in views.items()}, tmp_path / "v.pt")
    for file in ("plain.pt", "v.pt"):
        convert((name, tmp_path / file), ("mindspore_palm", tmp_path / file[:-3]))
    for key, array in weights_in(tmp_path / "plain").items():
        np.testing.assert_array_equal(weights_in(tmp_path / "v")[key], array, strict=True)


def left_by_scripts(torch, name, state, tmp_path):
    """Files of the same weights, as tools save them."""
    network = network_of(name)
    network.load_state_dict(state)
    optimizer = {"state": {0: {"step": torch.zeros(()), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    yield "compiled.pt", torch.compile(network).state_dict()
    yield "parallel.pt", torch.nn.DataParallel(network).state_dict()
    lightning = {f"model.net.{key}": value for key, value in state.items()}
    yield "lightning.ckpt", {"epoch": 3, "state_dict": lightning, "optimizer_states": [optimizer], "callbacks": {}}
    yield "script.pt", {"step": 3, "model": state, "optimizer": optimizer, "scaler": {"scale": torch.ones(1)}}
    yield "deep.pt", {"checkpoint": {"generator": dict(state)}, "loss": 3.5}
    table = FORMATS[name]["table"]
    yield "one_table.pt", {key: value for key, value in state.items() if key != table}
    yield "without_buffers.pt", {k: v for k, v in state.items() if not k.endswith(("beta", "inv_freq", "emb.scale"))}


def test_files_of_tools_are_read_to_the_same_bits(torch, convert, name, state, tmp_path):
    from safetensors.torch import save_model

    torch.save(state, tmp_path / "plain.pt")
    convert((name, tmp_path / "plain.pt"), ("mindspore_palm", tmp_path / "plain"))
    network = network_of(name)
    network.load_state_dict(state)
    save_model(network, str(tmp_path / "tied.safetensors"))
    assert len(load_file(tmp_path / "tied.safetensors")) < len(state)  # the trap works
    files = {"tied.safetensors": None, **dict(left_by_scripts(torch, name, state, tmp_path))}
    for file, content in files.items():
        if content is not None:
            torch.save(content, tmp_path / file)
        lines = convert((name, tmp_path / file), ("mindspore_palm", tmp_path / "ours"), overwrite=True)
        for key, array in weights_in(tmp_path / "plain").items():
            np.testing.assert_array_equal(weights_in(tmp_path / "ours")[key], array, strict=True)
        if file == "script.pt":
            assert any("script.pt also holds step, optimizer, scaler" in line for line in lines)


def test_two_networks_are_named_with_the_fix(torch, refused, state):
    message = refused({"model": state, "ema": state, "step": 3})
    assert "holds several networks, under model and ema; save only one of them: torch.save(torch.load" in message
    message = refused({f"{prefix}.{key}": value for key, value in state.items() for prefix in ("online", "ema")})
    assert "under 'ema.' and 'online.'" in message


def test_anything_but_a_dictionary_of_tensors_is_refused(torch, convert, refused, name, state, tmp_path):
    assert "depth is of type int" in refused({**state, "depth": 2})
    if name == "lucidrains":  # PyTorch itself cannot save the other
        assert "more than tensors" in refused(network_of(name))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(UserError, match=r"script\.pt: this is not a complete PyTorch file|more than tensors"):
        convert((name, tmp_path / "script.pt"), ("mindspore_palm", tmp_path / "ours"))


def test_pytorch_files_with_an_index(torch, convert, name, state, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    index, items = {}, list(state.items())
    for number in range(2):
        file = f"pytorch_model-{number + 1:05}-of-00002.bin"
        torch.save(dict(items[number::2]), folder / file)
        index |= dict.fromkeys(dict(items[number::2]), file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    torch.save(state, tmp_path / "plain.pt")
    convert((name, tmp_path / "plain.pt"), ("mindspore_palm", tmp_path / "plain"))
    convert((name, folder), ("mindspore_palm", tmp_path / "ours"))
    for key, array in weights_in(tmp_path / "plain").items():
        np.testing.assert_array_equal(weights_in(tmp_path / "ours")[key], array, strict=True)


def test_frequencies_in_half_precision_are_noted(torch, convert, name, state, tmp_path):
    short = {key: value.to(torch.bfloat16) for key, value in state.items()}
    torch.save(short, tmp_path / "short.pt")
    lines = convert((name, tmp_path / "short.pt"), ("mindspore_palm", tmp_path / "ours"))
    assert any("inv_freq rounded to bfloat16" in line for line in lines if line.startswith("note: "))
    assert any("with its buffers except for inv_freq rounded to bfloat16" in line for line in lines)

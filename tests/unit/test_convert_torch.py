"""Conversion from and to PyTorch's PaLMs, compared with the packages themselves: run with -m torch."""

from __future__ import annotations

import os

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindspore_palm.errors import UserError

pytestmark = pytest.mark.torch

SIZES = {"num_tokens": 61, "dim": 24, "depth": 2, "dim_head": 6, "heads": 3, "ff_mult": 2}  # 3 * 6 is not 24


@pytest.fixture(scope="module")
def torch():
    import torch  # pip install -r tests/requirements-torch.txt

    return torch


@pytest.fixture(params=["lucidrains", "conceptofmind"])
def name(request):
    return request.param


def make(torch, name, **more):
    """The package's own network with random parameters, scales included."""
    if name == "lucidrains":
        from palm_pytorch import PaLM
    else:
        from palm_rlhf_pytorch import PaLM
    torch.manual_seed(3)
    network = PaLM(**SIZES, **more).eval()
    around = 1.0 if name == "lucidrains" else 0.0
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            mean, std = (around, 0.4) if key.endswith("gamma") else (0.0, 0.3)
            parameter.normal_(mean, std)
    return network


@pytest.fixture
def convert(device, tmp_path):
    from mindspore_palm.convert.convert import convert
    from mindspore_palm.convert.model import Options

    def run(source, target, **more):
        lines = []
        options = {key: more.pop(key) for key in list(more) if key in Options.__annotations__}
        convert(source, target, Options(shape=(2, 12), **options), lines.append, **more)
        return lines[-1]

    return run


def save(torch, state, file):
    torch.save(state, file)
    return file


def ours(folder, tokens):
    from mindspore import Tensor

    from mindspore_palm import load

    return load(folder)(Tensor(tokens)).asnumpy()


def test_logits_and_bits(torch, convert, name, tmp_path, rng):
    """The package's logits equal this package's of the same file; the file that is written back has equal tensors."""
    network = make(torch, name)
    file = save(torch, network.state_dict(), tmp_path / "palm.pt")
    assert "largest difference" in convert((name, file), ("mindspore_palm", tmp_path / "ours"))
    tokens = rng.integers(0, 61, (2, 20)).astype(np.int32)
    with torch.no_grad():
        theirs = network(torch.from_numpy(tokens.astype(np.int64))).numpy()
    converted = ours(tmp_path / "ours", tokens)
    assert np.abs(converted - theirs).max() < 3e-6 * np.abs(theirs).max()

    convert(("mindspore_palm", tmp_path / "ours"), (name, tmp_path / "back.pt"))
    before, after = (torch.load(path, weights_only=True) for path in (file, tmp_path / "back.pt"))
    assert list(before) == list(after)
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), key
    make(torch, name).load_state_dict(after)

    convert((name, tmp_path / "back.pt"), ("mindspore_palm", tmp_path / "again"))
    weights, again = (load_file(tmp_path / folder / "model.safetensors") for folder in ("ours", "again"))
    assert weights.keys() == again.keys()
    for key, array in weights.items():
        np.testing.assert_array_equal(again[key], array, strict=True)


def test_trained_here_and_used_there(torch, convert, device, tmp_path, name):
    """A network of this package with the other's norms and logits becomes one of the other package."""
    from mindspore_palm import PaLM, PaLMConfig
    from mindspore_palm.checkpoint.model_folder import weights_of
    from mindspore_palm.convert.fused_linear import SWITCHES
    from mindspore_palm.convert.model import Model, Options
    from mindspore_palm.convert.native import Native

    of_package = {"lucidrains": {"norm_scale": "around_one"}, "conceptofmind": {"xpos_base": 512.0}}[name]
    sizes = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 6, "d_ff": 32, "vocab_size": 50, "vocab_multiple": 8}
    palm = PaLM(PaLMConfig(**sizes, **SWITCHES, **of_package))
    Native().write(Model(palm.config, weights_of(palm)), tmp_path / "ours", Options())
    convert(("mindspore_palm", tmp_path / "ours"), (name, tmp_path / "palm.pt"))
    convert((name, tmp_path / "palm.pt"), ("mindspore_palm", tmp_path / "back"), vocab_size=50)
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("ours", "back"))
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array, strict=True)


def test_a_palm_in_twice_the_width(torch, convert, device, tmp_path, rng):
    """PaLM's norms and logits as lucidrains' layer norms: the package computes the same as the JAX reference."""
    from parity.twins import logits_of, randomise_scales
    from parity.twins import weights_of as twin

    from mindspore_palm import PaLM, PaLMConfig
    from mindspore_palm.checkpoint.model_folder import weights_of
    from mindspore_palm.convert.model import Model, Options
    from mindspore_palm.convert.native import Native

    sizes = {"layers": 2, "d_model": 16, "heads": 2, "head_dim": 6, "d_ff": 64, "vocab_size": 50}
    palm = PaLM(PaLMConfig(**sizes))
    randomise_scales(palm, rng)
    Native().write(Model(palm.config, weights_of(palm)), tmp_path / "ours", Options())
    with pytest.raises(UserError, match="or set --widen, for a model of twice the width that computes the same"):
        convert(("mindspore_palm", tmp_path / "ours"), ("lucidrains", tmp_path / "palm.pt"))
    convert(("mindspore_palm", tmp_path / "ours"), ("lucidrains", tmp_path / "palm.pt"), wide=True)

    from palm_pytorch import PaLM as Theirs

    network = Theirs(num_tokens=50, dim=32, depth=2, dim_head=6, heads=2, ff_mult=2).eval()
    network.load_state_dict(torch.load(tmp_path / "palm.pt", weights_only=True))
    tokens = rng.integers(0, 50, (2, 20)).astype(np.int32)
    expected = logits_of(twin(palm), tokens, palm.config)
    with torch.no_grad():
        found = network(torch.from_numpy(tokens.astype(np.int64))).numpy()
    np.testing.assert_allclose(found, expected, atol=3e-6 * np.abs(expected).max())
    with pytest.raises(UserError, match=r"--widen cannot hold this model exactly.*model.norm=rms_norm"):
        convert(("lucidrains", tmp_path / "palm.pt"), ("mindspore_palm", tmp_path / "wider"), wide=True)


def test_conversion_to_every_other_format(torch, convert, tmp_path):
    file = save(torch, make(torch, "lucidrains").state_dict(), tmp_path / "palm.pt")
    convert(("lucidrains", file), ("huggingface-safetensors", tmp_path / "there"))
    convert(("huggingface-safetensors", tmp_path / "there"), ("lucidrains", tmp_path / "back.pt"))
    before, after = (torch.load(path, weights_only=True) for path in (file, tmp_path / "back.pt"))
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    convert(("lucidrains", file), ("mindir", tmp_path / "palm.mindir"))
    with pytest.raises(UserError, match=r"model.norm=rms_norm \(here layer_norm\)"):
        convert(("lucidrains", file), ("flaxformer", tmp_path / "tree.safetensors"))
    with pytest.raises(UserError, match=r"model.norm_scale=around_zero \(here around_one\), model.xpos_base=512"):
        convert(("lucidrains", file), ("conceptofmind", tmp_path / "c.pt"))


def test_scales_of_an_older_version_need_an_option(torch, convert, tmp_path):
    """PaLM-rlhf-pytorch once stored scales around one: read as today's, the network would silently be different."""
    network = make(torch, "conceptofmind")
    state = {key: value + 1 if key.endswith("gamma") else value for key, value in network.state_dict().items()}
    file = save(torch, state, tmp_path / "old.pt")
    with pytest.raises(UserError, match="set --norm-scale around_one or --norm-scale around_zero"):
        convert(("conceptofmind", file), ("mindspore_palm", tmp_path / "ours"))
    convert(("conceptofmind", file), ("mindspore_palm", tmp_path / "ours"), norm_scale="around_one")
    tokens = np.arange(20, dtype=np.int32)[None]
    with torch.no_grad():
        theirs = network(torch.from_numpy(tokens.astype(np.int64))).numpy()
    assert np.abs(ours(tmp_path / "ours", tokens) - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_checkpoints_of_training_scripts(torch, convert, name, tmp_path):
    """A state inside a dictionary, with a prefix, in half precision is read to the same values."""
    network = make(torch, name)
    full = {key: value.to(torch.bfloat16).to(torch.float32) for key, value in network.state_dict().items()}
    short = {f"module.{key}": value.to(torch.bfloat16) for key, value in network.state_dict().items()}
    paths = [
        save(torch, full, tmp_path / "full.pt"),
        save(torch, {"step": 3, "model": short}, tmp_path / "short.pt"),
    ]
    for path in paths:
        convert((name, path), ("mindspore_palm", tmp_path / path.stem))
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("full", "short"))
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array, strict=True)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_file_that_would_run_code(torch, convert, name, tmp_path):
    state = {**make(torch, name).state_dict(), "step": Malicious(f"touch {tmp_path / 'ran'}")}
    file = save(torch, state, tmp_path / "palm.pt")
    with pytest.raises(UserError, match="could run code when it is opened: refused, and none of it was run"):
        convert((name, file), ("mindspore_palm", tmp_path / "ours"))
    assert [path.name for path in tmp_path.iterdir()] == ["palm.pt"]
    torch.load(file, weights_only=False)  # the trap works
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -10])
def test_a_truncated_file(torch, convert, name, tmp_path, keep):
    file = save(torch, make(torch, name).state_dict(), tmp_path / "palm.pt")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError) as caught:
        convert((name, file), ("mindspore_palm", tmp_path / "ours"))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_garbage_and_other_contents(torch, convert, name, tmp_path):
    (tmp_path / "garbage.pt").write_bytes(os.urandom(3000))
    (tmp_path / "folder.pt").mkdir()
    save(torch, [1, 2], tmp_path / "list.pt")
    save(torch, {}, tmp_path / "empty.pt")
    save(torch, {"weight": torch.zeros(3)}, tmp_path / "other.pt")
    for file in ("garbage.pt", "folder.pt", "list.pt", "empty.pt", "other.pt", "nowhere.pt"):
        with pytest.raises(UserError) as caught:
            convert((name, tmp_path / file), ("mindspore_palm", tmp_path / "ours"))
        assert file in str(caught.value)
        assert "\n" not in str(caught.value)


def first_key(state, ending):
    return next(key for key in state if key.endswith(ending))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s, torch: s[first_key(s, "norm.beta")].fill_(0.1), "beta is not zero; PaLM's norms have no bias"),
        (lambda s, torch: s.update({list(s)[-1]: s[list(s)[-1]] + 1}), "is another table than"),
        (lambda s, torch: s.pop(first_key(s, "norm.gamma")), "gamma is missing"),
        (
            lambda s, torch: s.update({first_key(s, "norm.gamma"): torch.zeros(5)}),
            "gamma is [5]; the other tensors imply [24]",
        ),
        (
            lambda s, torch: s.update({first_key(s, "attn_out.weight"): torch.zeros(24, 17)}),
            "not those of q, k, v, up and gate",
        ),
        (lambda s, torch: s.update({first_key(s, "attn_out.weight"): torch.zeros(())}), "not matrices"),
        (lambda s, torch: s.update({"value_head.weight": torch.zeros(5)}), "no place for value_head.weight in a PaLM"),
        (lambda s, torch: s.update({first_key(s, "norm.gamma"): torch.zeros(24).double()}), "is float64"),
    ],
)
def test_tensors_that_a_palm_does_not_have(torch, convert, name, tmp_path, change, problem):
    state = dict(make(torch, name).state_dict())
    if name == "conceptofmind":  # moves the logits' table to the end, where the other package has it
        state["to_logits.weight"] = state.pop("to_logits.weight")
    change(state, torch)
    file = save(torch, state, tmp_path / "palm.pt")
    with pytest.raises(UserError) as caught:
        convert((name, file), ("mindspore_palm", tmp_path / "ours"))
    assert problem in str(caught.value)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("more", "problem"), [({"qk_rmsnorm": True}, "qk_rmsnorm"), ({"finetune_scopes": ("a",)}, "LoRA")]
)
def test_features_of_conceptofmind_only(torch, convert, tmp_path, more, problem):
    file = save(torch, make(torch, "conceptofmind", **more).state_dict(), tmp_path / "palm.pt")
    with pytest.raises(UserError, match=problem):
        convert(("conceptofmind", file), ("mindspore_palm", tmp_path / "ours"))

"""The model zoo: networks by name, which take no memory until their weights are needed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindspore_palm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 4, "d_ff": 24, "vocab_size": 61}

LARGEST = """
import time, psutil
from mindspore_palm import create_model
create_model("palm_tiny")  # memory and time of MindSpore's start
before, start = psutil.Process().memory_info().rss, time.perf_counter()
palm = create_model("palm_540b")
seconds = time.perf_counter() - start
print(palm.config.parameter_count(), len(palm.trainable_params()), psutil.Process().memory_info().rss - before, seconds)
"""


def test_names():
    from mindspore_palm import list_models

    assert list_models() == ["palm_tiny", "palm_small", "palm_8b", "palm_62b", "palm_540b"]
    assert list_models("palm_*b") == ["palm_8b", "palm_62b", "palm_540b"]
    assert list_models("bert*") == []


def test_names_as_in_mindcv():
    from mindspore_palm import is_model, is_model_pretrained, list_models, model_entrypoint

    assert list_models(filter="palm_*b") == ["palm_8b", "palm_62b", "palm_540b"]
    assert list_models(["*tiny", "*540b"]) == ["palm_tiny", "palm_540b"]
    assert list_models(exclude_filters=["*b", "*small"]) == ["palm_tiny"]
    assert list_models(pretrained=True) == []
    assert is_model("palm_8b") and not is_model("resnet50") and not is_model_pretrained("palm_8b")
    assert model_entrypoint("palm_8b")(layers=2).config.layers == 2
    with pytest.raises(UserError, match="did you mean palm_8b"):
        model_entrypoint("palm_8")
    with pytest.raises(UserError, match="give one of them"):
        list_models("a", filter="b")


@pytest.fixture(scope="module")
def trained(device, tokenizer, tmp_path_factory):
    """A run with a model, and the same model as other folders hold it."""
    from mindspore_palm import PaLM, PaLMConfig
    from mindspore_palm.checkpoint.model_folder import save_model, weights_of
    from mindspore_palm.config import Settings
    from mindspore_palm.convert.huggingface import HuggingFace
    from mindspore_palm.convert.model import Model, Options

    palm = PaLM(PaLMConfig(**SMALL), seed=7)
    home = tmp_path_factory.mktemp("trained")
    save_model(home / "run" / "final", weights_of(palm), tokenizer.serialized, Settings(model=palm.config), step=1)
    HuggingFace().write(Model(palm.config, weights_of(palm)), home / "exported", Options())
    return palm, home


@pytest.mark.parametrize("argument", ["pretrained", "checkpoint_path"])
@pytest.mark.parametrize("path", ["run", "run/final", "run/final/model.safetensors", "exported"])
def test_a_trained_model_opens_by_its_name_and_sizes(trained, argument, path):
    from mindspore_palm import create_model

    palm, home = trained
    again = create_model("palm_tiny", **SMALL, **{argument: home / path})
    for expected, weight in zip(palm.trainable_params(), again.trainable_params(), strict=True):
        np.testing.assert_array_equal(weight.asnumpy(), expected.asnumpy(), strict=True)


def test_weights_that_are_not_there_or_do_not_fit_are_one_sentence(trained, tmp_path):
    from mindspore_palm import create_model

    home = trained[1]
    (tmp_path / "palm.ckpt").write_bytes(b"1")
    for arguments, problem in (
        ({"pretrained": True}, "there are no published weights of palm_tiny; name the folder of a run"),
        ({"checkpoint_path": "palm_540b"}, "there are no published weights of palm_540b"),
        ({"pretrained": "nowhere"}, "there is no folder nowhere"),
        ({"pretrained": True, "checkpoint_path": "run"}, "give one of them"),
        ({"checkpoint_path": tmp_path / "palm.ckpt"}, "a trained model is the file model.safetensors beside its"),
        ({"checkpoint_path": home / "run"}, "it has layers=1, d_model=16, heads=2, head_dim=4, d_ff=24, vocab_size=61"),
        (
            {"checkpoint_path": home / "run", **SMALL, "block": "serial"},
            "it has block='parallel', and here it would be",
        ),
        ({"checkpoint_path": home / "exported", **SMALL, "heads": 4}, "it has heads=2, and here it would be 4"),
    ):
        with pytest.raises(UserError) as caught:
            create_model("palm_tiny", **arguments)
        assert problem in str(caught.value), caught.value
        assert "\n" not in str(caught.value)


def test_the_largest_takes_no_memory_until_weights_are_needed():
    result = subprocess.run(
        [sys.executable, "-c", LARGEST], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    parameters, tensors, memory, seconds = result.stdout.split()
    assert int(parameters) == 540_354_281_472
    assert int(tensors) == 1 + 118 * 4
    assert int(memory) < 100e6
    assert float(seconds) < 10


def test_the_weights_are_those_of_an_eager_network(device):
    from mindspore import Tensor

    from mindspore_palm import PaLM, PaLMConfig, create_model

    tokens = Tensor(np.arange(10, dtype=np.int32).reshape(2, 5))
    eager = PaLM(PaLMConfig.from_preset("palm_tiny", **SMALL), seed=3)
    by_name = create_model("palm_tiny", seed=3, **SMALL)
    assert all(p.has_init for p in by_name.trainable_params())
    read = {p.name: p.asnumpy().copy() for p in by_name.trainable_params()}
    np.testing.assert_array_equal(by_name(tokens).asnumpy(), eager(tokens).asnumpy())
    for p in eager.trainable_params():
        np.testing.assert_array_equal(read[p.name], p.asnumpy(), strict=True)
    for p, q in zip(eager.trainable_params(), by_name.trainable_params(), strict=True):
        np.testing.assert_array_equal(q.asnumpy(), p.asnumpy(), strict=True)
        assert not q.has_init


def test_weights_are_drawn_on_request(device):
    from mindspore_palm import PaLM, PaLMConfig, create_model

    eager, by_name = PaLM(PaLMConfig.from_preset("palm_tiny", **SMALL)), create_model("palm_tiny", **SMALL)
    assert all(p.has_init for p in by_name.trainable_params())
    by_name.init_parameters_data()
    for p, q in zip(eager.trainable_params(), by_name.trainable_params(), strict=True):
        assert not q.has_init
        np.testing.assert_array_equal(q.asnumpy(), p.asnumpy(), strict=True)


def test_a_network_by_name_trains(device):
    from mindspore import Tensor

    from mindspore_palm import PaLM, PaLMConfig, create_model
    from mindspore_palm.config import OptimizerConfig
    from mindspore_palm.model.loss import Loss
    from mindspore_palm.optim import make_optimizer
    from mindspore_palm.train.step import TrainStep

    inputs = np.arange(12, dtype=np.int32).reshape(2, 6)
    losses = []
    for palm in (create_model("palm_tiny", **SMALL), PaLM(PaLMConfig.from_preset("palm_tiny", **SMALL))):
        optimizer = make_optimizer(palm.trainable_params(), OptimizerConfig(), 3)
        step = TrainStep(Loss(palm), optimizer, 1.0, 0)
        losses.append([step(inputs, inputs + 1, inputs.size).loss for _ in range(3)])
        assert palm(Tensor(inputs)).shape == (2, 6, 61)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("made", ["by name", "loaded"])
def test_a_function_around_a_network_sees_its_weights(device, made, tokenizer, tmp_path):
    """MindSpore draws the weights of Cells that are called, not of Cells inside a function."""
    import mindspore as ms

    from mindspore_palm import PaLM, PaLMConfig, create_model, load
    from mindspore_palm.checkpoint.model_folder import save_model, weights_of
    from mindspore_palm.config import Settings

    eager = PaLM(PaLMConfig.from_preset("palm_tiny", **SMALL))
    save_model(tmp_path / "run", weights_of(eager), tokenizer.serialized, Settings(model=eager.config), step=1)
    other = create_model("palm_tiny", **SMALL) if made == "by name" else load(tmp_path / "run")
    tokens = ms.Tensor(np.arange(10, dtype=np.int32).reshape(2, 5))

    def gradients(palm):
        def objective(ids):
            return (palm(ids) ** 2).mean()

        values = ms.value_and_grad(objective, None, palm.trainable_params())(tokens)
        return [values[0].asnumpy(), *(gradient.asnumpy() for gradient in values[1])]

    for expected, gradient in zip(gradients(eager), gradients(other), strict=True):
        assert np.abs(expected).max() > 0
        np.testing.assert_array_equal(gradient, expected)


def test_invalid_names_and_sizes_are_one_sentence():
    from mindspore_palm import create_model

    for call, problem in (
        (lambda: create_model("palm_8"), "did you mean palm_8b?"),
        (lambda: create_model("gpt"), "there are palm_tiny"),
        (lambda: create_model("palm_8b", layer=2), "model.layer"),
        (lambda: create_model("palm_8b", layers="2"), "model.layers"),
        (lambda: create_model("palm_8b", heads=7), "d_ff = 16384 is not a multiple of heads = 7"),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert problem in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.fixture
def hub():
    """The file as MindSpore Hub opens it: by its path."""
    spec = importlib.util.spec_from_file_location("mindspore_hub_conf", ROOT / "mindspore_hub_conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mindspore_hub(hub):
    assert hub.create_network("palm_8b", layers=2).config.layers == 2
    with pytest.raises(NotImplementedError, match=r"gpt is not implemented in the repo; there are palm_tiny"):
        hub.create_network("gpt")
    with pytest.raises(TypeError):
        hub.create_network("palm_8b", 2)


def test_mindspore_hub_opens_a_trained_model(hub, trained):
    palm, home = trained
    again = hub.create_network("palm_tiny", **SMALL, checkpoint_path=str(home / "run"))
    np.testing.assert_array_equal(again.embedding.asnumpy(), palm.embedding.asnumpy())

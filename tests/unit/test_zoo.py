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

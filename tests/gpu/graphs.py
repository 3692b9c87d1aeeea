"""Compiles and launches the package's graphs on the GPU of this process: ``graphs.py DTYPE``, a JSON line per graph.

A graph whose line says "launched" has a GPU kernel for each of its ops. Any other line is the error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import mindspore_palm  # noqa: F401 - before MindSpore, for which it finds CUDA

# isort: split
import numpy as np
from mindspore import Tensor, nn, ops
from switches import SWITCHES, name_of

from mindspore_palm.config import Settings
from mindspore_palm.generate.decoder import Decoder
from mindspore_palm.model.lora import adapt
from mindspore_palm.model.loss import Loss
from mindspore_palm.model.palm import PaLM
from mindspore_palm.model.precision import MS_DTYPES
from mindspore_palm.optim import make_optimizer
from mindspore_palm.optim.registry import OPTIMIZERS
from mindspore_palm.parallel import axes
from mindspore_palm.parallel.check import layout_of
from mindspore_palm.parallel.context import open_device
from mindspore_palm.train.build import build_step
from mindspore_palm.train.evaluate import Evaluator
from mindspore_palm.train.log import peak
from mindspore_palm.train.step import TrainStep

MODEL = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 8, "d_ff": 32, "vocab_size": 61, "vocab_multiple": 4}
BATCH, LENGTH = 4, 8
TOKENS = np.zeros((BATCH, LENGTH), np.int32)
ADAMW = {"name": "adamw"}  # the smallest graph


def settings_of(dtype: str, **sections: dict[str, Any]) -> Settings:
    train = {"batch_size": BATCH, "compute_dtype": dtype, **sections.pop("train", {})}
    model = {**MODEL, **sections.pop("model", {})}
    return Settings.model_validate({"data": {"seq_len": LENGTH}, "model": model, "train": train, **sections})


def train(settings: Settings) -> None:
    with axes.layout(layout_of(settings, "GPU")):
        build_step(settings)[1](TOKENS, TOKENS)


def train_adapters(settings: Settings) -> None:
    """LoRA, with dropout."""
    with axes.layout(layout_of(settings, "GPU")):
        palm = PaLM(settings.model)
        adapt(palm, 2, 4.0, 0)
        optimizer = make_optimizer(palm.trainable_params(), settings.optimizer, 10)
        mask = np.ones((BATCH, 2, settings.model.d_model), np.float32)
        TrainStep(Loss(palm), optimizer, 1.0, dropout=True)(TOKENS, TOKENS, dropout_mask=mask)


def evaluate(settings: Settings) -> None:
    with axes.layout(layout_of(settings, "GPU")):
        Evaluator(PaLM(settings.model), np.ones(61, np.int32))([(TOKENS, TOKENS)])


def generate(settings: Settings) -> None:
    """A prompt of some sequences, then a token of each."""
    with axes.layout(layout_of(settings, "GPU")):
        decoder = Decoder(PaLM(settings.model), 2, 2 * LENGTH)
        decoder.read([TOKENS[0], TOKENS[0, :3]])
        decoder.write(np.zeros(2, np.int32), np.array([LENGTH, 3]))


def measure_peak(dtype: str) -> None:
    peak.ON_ACCELERATOR = peak.Sample(64, 2)
    peak.measure_peak("GPU", dtype)


class AnyOp(nn.Cell):
    """One op of the compute dtype alone."""

    def __init__(self) -> None:
        super().__init__()
        self.add = ops.Add()

    def construct(self, x: Tensor) -> Tensor:
        return self.add(x, x)


def graphs(dtype: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name of every graph, and what launches it."""

    def settings(**sections: dict[str, Any]) -> Settings:
        return settings_of(dtype, **sections)

    for name in OPTIMIZERS:
        yield f"train {name}", lambda name=name: train(settings(optimizer={"name": name}))
    yield "train factored", lambda: train(settings(optimizer={"factored": True}))
    yield "train cosine", lambda: train(settings(optimizer={"schedule": "cosine", "warmup_steps": 2}))
    yield "train unclipped", lambda: train(settings(optimizer={**ADAMW, "clip_norm": 0.0}))
    yield "accumulate", lambda: train(settings(train={"micro_batch": 2}, optimizer=ADAMW))
    for kind in ("attention", "block"):
        yield (
            f"recompute {kind}",
            lambda kind=kind: train(settings(parallel={"recompute": kind}, optimizer=ADAMW, model={"layers": 2})),
        )
    yield "adapters", lambda: train_adapters(settings(optimizer=ADAMW))
    yield "evaluate", lambda: evaluate(settings())
    yield "generate", lambda: generate(settings())
    yield "peak", lambda: measure_peak(dtype)
    for switches in SWITCHES:
        yield f"switch {name_of(switches)}", lambda s=switches: train(settings(model=s, optimizer=ADAMW))


def main(dtype: str) -> None:
    device = open_device("GPU")
    print(json.dumps(["device", device.name]), flush=True)
    if dtype == "bfloat16":  # for which there is no kernel at all
        cases = iter([("add", lambda: AnyOp()(Tensor(np.ones(4, np.float32)).astype(MS_DTYPES[dtype])))])
    else:
        cases = graphs(dtype)
    for name, launch in cases:
        try:
            launch()
            result = "launched"
        except Exception as error:  # whatever it is, the test shows it
            result = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        print(json.dumps([name, result]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

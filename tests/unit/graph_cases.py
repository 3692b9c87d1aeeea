"""Tiny networks whose graphs are kept, for tests of the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor, nn

from mindspore_palm.graph_cache.compiler import CACHE
from mindspore_palm.parallel.axes import layout
from mindspore_palm.parallel.check import layout_of
from mindspore_palm.settings import load_settings
from mindspore_palm.train.build import build_step
from mindspore_palm.train.evaluate import Evaluator

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "model.layers=1 model.d_model=16 model.heads=2 model.head_dim=8 model.d_ff=32 model.vocab_size=300 "
    "data.seq_len=16 train.batch_size=4 train.steps=10 optimizer.learning_rate=0.01 optimizer.schedule=constant"
)
BATCH = Tensor(np.zeros((4, 16), np.int32))
COUNT = Tensor(np.float32(64))


def settings_of(*overrides):
    by_name = dict(line.split("=", 1) for line in (*TINY.split(), *overrides))
    return load_settings(None, [f"{name}={value}" for name, value in by_name.items()])[0]


def built(*overrides):
    """A new network and its step."""
    settings = settings_of(*overrides)
    with layout(layout_of(settings, "CPU")):
        return build_step(settings)


def trained(*overrides, steps=5):
    """Losses of some steps, held-out loss, and the state afterwards, of a new network."""
    settings, rng = settings_of(*overrides), np.random.default_rng(1)
    with layout(layout_of(settings, "CPU")):
        palm, step = build_step(settings)
        batches = rng.integers(0, 300, (steps, 2, 4, 16)).astype(np.int32)
        results = [step(*batch) for batch in batches]
        evaluation = Evaluator(palm, np.ones(300, np.int32))([tuple(batches[0])])
        state = {p.name: p.asnumpy().tobytes() for p in step.state}
    return results, evaluation, state


def counted(function):
    """The result of a function, and how many graphs it loaded and how many it kept."""
    hits, misses = CACHE.hits, CACHE.misses
    result = function()
    return result, (CACHE.hits - hits, CACHE.misses - misses)


class Times(nn.Cell):
    """A network that the package does not have."""

    def __init__(self, constant, name="w"):
        super().__init__()
        self.constant = constant
        self.w = Parameter(np.ones(2, np.float32), name=name)

    def construct(self, x):
        return x * self.w * self.constant

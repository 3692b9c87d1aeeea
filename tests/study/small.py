"""A study that ends in seconds, its text, and a trainer that computes nothing."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path

import yaml

from mindspore_palm.study.trainer import Trained

SMALL = {
    "title": "A small study",
    "base": "palm",
    "settings": {
        "model": {"layers": 1, "heads": 2, "vocab_size": 300},
        "data": {"seq_len": 16, "path": "text.txt", "prepared": "prepared", "validation_fraction": 0.1},
        "optimizer": {"schedule": "constant"},
        "train": {"batch_size": 4, "steps": 5},
    },
    "sizes": {
        "a": {"model.d_model": 16, "model.head_dim": 8, "model.d_ff": 32},
        "b": {"model.d_model": 24, "model.head_dim": 8, "model.d_ff": 48},
        "c": {"model.d_model": 32, "model.head_dim": 8, "model.d_ff": 64},
        "d": {"model.d_model": 40, "model.head_dim": 8, "model.d_ff": 80},
    },
    "variants": {
        "palm": {},
        "gelu": {"set": {"model.mlp": "gelu"}},
        "learned": {"set": {"model.position": "learned"}, "hold": "nothing"},
    },
    "rates": {"grid": [0.01, 0.05], "seeds": [9], "sizes": ["a"]},
    "seeds": [0, 1, 2],
    "beyond": [2],
    "fit": {"sizes": ["a", "b", "c", "d"]},
    "times": {"rounds": 2, "steps": 1},
    "claims": {"swiglu": {"title": "SwiGLU", "says": "better"}, "position": {"title": "RoPE", "says": "longer"}},
    "comparisons": [
        {"claim": "swiglu", "measure": "loss", "variant": "gelu", "sizes": ["a", "b"], "expects": "higher"},
        {"claim": "swiglu", "measure": "step_time", "variant": "gelu", "sizes": ["a"], "expects": "anything"},
        {"claim": "swiglu", "measure": "state_bytes", "variant": "gelu", "sizes": ["a"], "expects": "lower"},
        {"claim": "position", "measure": "loss_beyond", "variant": "learned", "sizes": ["a"], "expects": "higher"},
        {"claim": "position", "measure": "loss_beyond", "variant": "gelu", "sizes": ["a"], "expects": "higher"},
    ],
    "quick": {"seeds": [0, 1], "steps": 3, "grid": [0.01], "sizes": ["a"], "rounds": 2},
}


def small(**changes):
    """The study, with some of its sections replaced."""
    return {**copy.deepcopy(SMALL), **changes}


def write_study(folder: Path, values=None, name="small.yaml") -> Path:
    """A study's file and its text in a folder."""
    draw = random.Random(0)
    words = ["".join(draw.choice("abcdefghijklmnop") for _ in range(draw.randint(2, 7))) for _ in range(300)]
    lines = (" ".join(draw.choice(words) for _ in range(12)) for _ in range(400))
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    file = folder / name
    file.write_text(yaml.safe_dump(small() if values is None else values, sort_keys=False))
    return file


class FakeTrainer:
    """Losses that are a function of network, seed and rate: gelu is 0.02 worse, and 0.05 the better rate."""

    calls = 0

    def __init__(self, settings, prepared):
        self.settings = settings

    def run(self, seed, rate, beyond):
        type(self).calls += 1
        model = self.settings.model
        loss = 3.0 - 0.1 * math.log(model.flops_per_token(16)) + 0.01 * math.sin(seed) + 0.5 * (0.05 - rate)
        loss += (0.02 + 0.001 * math.cos(seed)) * (model.mlp == "gelu")
        parts = {
            str(n): [] if n > 1 and model.longest else [loss + 0.1 * i for i in range(4 * n)] for n in (1, *beyond)
        }
        return Trained(loss, loss / 2, [[1, loss]], False, parts)

    def steps(self, count):
        return lambda: None

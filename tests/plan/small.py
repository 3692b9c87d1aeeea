"""A small network on a mesh of three axes, for dry runs."""

from __future__ import annotations

from mindspore_palm.config import Settings

SMALL = {
    "model": {"layers": 5, "d_model": 64, "heads": 4, "head_dim": 16, "d_ff": 256, "vocab_size": 128},
    "data": {"seq_len": 16},
    "train": {"batch_size": 16, "compute_dtype": "bfloat16"},
    "parallel": {"pods": 2, "data": 4, "model": 2, "recompute": "block"},
}


def small(layers):
    return Settings.model_validate({**SMALL, "model": {**SMALL["model"], "layers": layers}})

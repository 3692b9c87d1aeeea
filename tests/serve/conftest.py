"""A small model in a folder, as training leaves it, and the same model in this process."""

from __future__ import annotations

import pytest

from mindspore_palm import Generator, PaLM, Tokenizer, load
from mindspore_palm.checkpoint.model_folder import save_model, weights_of
from mindspore_palm.config import Settings

CONTEXT = 160  # two and a half chunks of a prompt
MODEL = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 8, "d_ff": 32, "vocab_size": 320}


@pytest.fixture(scope="session")
def model_folder(device, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    folder.mkdir()
    words = (f"import os{i}\ndef f{i}(a, b):\n    return a + {i} * b\n" for i in range(400))
    tokenizer = Tokenizer.train(words, 320, folder / "tokenizer.model")
    (folder / "tokenizer.model").unlink()
    settings = Settings.model_validate({"model": MODEL, "data": {"seq_len": CONTEXT}})
    save_model(folder / "final", weights_of(PaLM(settings.model, seed=2)), tokenizer.serialized, settings, step=1)
    return folder


@pytest.fixture(scope="session")
def generator(model_folder):
    """The model alone: one sequence at a time."""
    return Generator(load(model_folder), Tokenizer(model_folder / "final" / "tokenizer.model"), CONTEXT)

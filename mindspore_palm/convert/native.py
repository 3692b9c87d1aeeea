"""Folders of a model of this package, which ``load`` opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mindspore import Tensor

from mindspore_palm.checkpoint.format import Checkpoint
from mindspore_palm.checkpoint.identity import header_of
from mindspore_palm.checkpoint.model_folder import find_model, load, save_model, weights_of
from mindspore_palm.checkpoint.training import Training
from mindspore_palm.config import Settings
from mindspore_palm.convert.model import SEQ_LEN, Computed, Model, Options
from mindspore_palm.file_names import CONFIG, MANIFEST, TOKENIZER, WEIGHTS
from mindspore_palm.parallel.fused import portable
from mindspore_palm.settings import load_settings


class Native:
    """A folder of model.safetensors, config.yaml, a card and, if the model has a tokenizer, tokenizer.model."""

    is_read = True

    def read(self, path: Path, options: Options) -> Model:
        folder = find_model(path)
        palm, tokenizer = load(folder), folder / TOKENIZER
        settings, _ = load_settings(folder / CONFIG)
        serialized = tokenizer.read_bytes() if tokenizer.exists() else None
        if (folder / MANIFEST).exists():
            training = Training.of(Checkpoint(folder), settings)
        else:
            training = Training.from_header(header_of(folder / WEIGHTS))
        return Model(settings.model, weights_of(palm), serialized, settings.data.seq_len, training=training)

    def write(self, model: Model, path: Path, options: Options) -> None:
        settings = Settings.model_validate({"model": model.config, "data": {"seq_len": model.seq_len or SEQ_LEN}})
        save_model(path, model.weights, model.tokenizer, settings, step=0, training=model.training)

    def logits(self, path: Path, tokens: np.ndarray, options: Options) -> Computed:
        with portable():  # as a MindIR, which then has the same bits
            palm = load(path)
        return Computed(palm(Tensor(tokens)).asnumpy(), "the network of this package")

"""Fine-tuning: a run that starts from a trained model and learns from pairs. Everything else is ordinary training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mindspore_palm.checkpoint.model_folder import find_model, load_tokenizer, read_config, weight_reader
from mindspore_palm.config import PaLMConfig, Settings, check_length
from mindspore_palm.data import Prepared, prepare_text, read_pairs
from mindspore_palm.data.vocabulary import fit_vocabulary
from mindspore_palm.errors import UserError
from mindspore_palm.fields import Contradiction
from mindspore_palm.file_names import CONFIG, TOKENIZER
from mindspore_palm.model.dropout import draw_dropout_mask
from mindspore_palm.model.lora import adapt
from mindspore_palm.model.palm import PaLM
from mindspore_palm.parallel.weights import placement_of, set_shard
from mindspore_palm.train.continuation import StartOptions, check_corpus, kept_text
from mindspore_palm.train.state import fingerprint

PADDING = "vocab_multiple"  # the one size that may differ from the checkpoint's


def with_model_of_checkpoint(settings: Settings, written: Collection[str] = ()) -> Settings:
    """Settings of a run with the sizes of its base model; unchanged if it has none.

    The padding of the vocabulary may differ, since another mesh may need another one.

    Args:
        settings: all of them.
        written: names of the settings that were given explicitly, even if with their default.

    Raises:
        UserError: there is no such model, or a setting contradicts it.
    """
    checkpoint, output = settings.finetune.checkpoint, Path(settings.train.output).resolve()
    if not checkpoint:
        return settings
    folder = find_model(Path(checkpoint))
    if output == folder.resolve() or output in folder.resolve().parents:
        raise UserError(
            f"train.output = {settings.train.output} holds the model that finetune.checkpoint = {checkpoint} starts "
            "from; set train.output to another folder"
        )
    if settings.data.tokenizer:
        raise UserError("data.tokenizer is set, and a fine-tuned model keeps its own tokenizer; leave it out")
    if settings.data.mixture:
        raise UserError("data.mixture is set, and fine-tuning learns from the pairs of data.path; leave it out")
    if not (folder / CONFIG).exists():
        raise UserError(f"there is no {folder / CONFIG}, which holds the sizes of the model")
    model = read_config(folder / CONFIG)
    for name, value in settings.model.model_dump().items():
        if name in ("preset", PADDING) or value == getattr(model, name):
            continue
        if f"model.{name}" in written or value != PaLMConfig.model_fields[name].default:
            raise UserError(
                f"model.{name} = {value}, and {folder} has {getattr(model, name)}; fine-tuning keeps the sizes of "
                "the base model: leave the section model out"
            )
    model = fit_vocabulary(model, load_tokenizer(checkpoint).vocab_size, folder / TOKENIZER)
    multiple = settings.model.vocab_multiple
    if f"model.{PADDING}" in written or multiple != PaLMConfig.model_fields[PADDING].default:
        model = model.model_copy(update={PADDING: multiple})
    try:
        check_length(model, settings.data.seq_len)
    except Contradiction as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None
    return settings.model_copy(update={"model": model})


def open_data(settings: Settings, overwrite: bool = False) -> Prepared:
    """Prepares the data of a run: text, or pairs for fine-tuning.

    A run that resumes keeps the tokenizer of its checkpoints, and trains no new one.

    Args:
        settings: all of them.
        overwrite: whether an earlier run in ``train.output`` will be deleted, with its tokenizer.

    Raises:
        UserError, Interrupted, OSError: as ``prepare`` and ``read_pairs``.
    """
    finetune = settings.finetune
    if not finetune.checkpoint:
        kept = None if overwrite else kept_text(Path(settings.train.output))
        return prepare_text(settings.data, settings.model.vocab_size, pinned=kept)
    return read_pairs(settings.data, finetune, load_tokenizer(finetune.checkpoint))


def check_text(settings: Settings, start: StartOptions, state: Mapping[str, Any]) -> None:
    """Checks that the text is the one that a run started with.

    Args:
        settings: all of them.
        start: names the changes that are accepted.
        state: of a checkpoint of the run.

    Raises:
        UserError, Interrupted, OSError: as ``open_data`` and ``check_corpus``.
    """
    check_corpus(state.get("corpus", {}), fingerprint(open_data(settings)), start, settings)


def load_base_model(palm: PaLM, settings: Settings) -> None:
    """Loads the base model's weights into a new network, and adds LoRA adapters; does nothing without a base model.

    Each worker reads only its shards.

    Raises:
        UserError: a weight is missing, damaged or of another shape.
    """
    finetune = settings.finetune
    if not finetune.checkpoint:
        return
    read = weight_reader(find_model(Path(finetune.checkpoint)), settings.model)
    for weight in palm.get_parameters():
        set_shard(weight, read(weight.name, placement_of(weight).shape))
    if finetune.lora_rank:
        adapt(palm, finetune.lora_rank, finetune.lora_alpha, settings.train.seed)


def has_dropout(settings: Settings) -> bool:
    """Whether a run has dropout; only fine-tuning does."""
    return bool(settings.finetune.checkpoint and settings.finetune.dropout)


def dropout_mask(settings: Settings, step: int, rows: range) -> np.ndarray | None:
    """Dropout mask of some sequences of a step's batch, for ``TrainStep``; None without dropout.

    Args:
        settings: all of them.
        step: steps taken before.
        rows: sequences of the batch.
    """
    if not has_dropout(settings):
        return None
    model, rate = settings.model, settings.finetune.dropout
    return draw_dropout_mask(settings.train.seed, step, rows, 1 + model.layers, model.d_model, rate)

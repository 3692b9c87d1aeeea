"""A trained model as a self-contained folder: model.safetensors, tokenizer.model, config.yaml and its card."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from mindspore import Tensor
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from mindspore_palm.checkpoint.cleanup import delete_own_files, move_into
from mindspore_palm.checkpoint.format import Checkpoint, StoredTensor, folder_name, steps_in
from mindspore_palm.checkpoint.identity import SOURCE_CHECKPOINT, header_of, is_model_of
from mindspore_palm.checkpoint.merged import Merged, model_weights
from mindspore_palm.checkpoint.model_card import keep_edited, model_card
from mindspore_palm.checkpoint.padding import Repadded, with_padding
from mindspore_palm.checkpoint.safetensors_stream import FileTensor, Source, file_tensors, write_tensors
from mindspore_palm.checkpoint.timeline import current_checkpoint
from mindspore_palm.checkpoint.training import TRAINING, HeldOut, Training
from mindspore_palm.config import PaLMConfig, Settings
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.data.vocabulary import fit_vocabulary
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import CARD, CHECKPOINTS, CONFIG, FINAL, MANIFEST, TEMPORARY, TOKENIZER, WEIGHTS
from mindspore_palm.files import existing_folder, names_pattern, write_atomically
from mindspore_palm.model.palm import PaLM
from mindspore_palm.model.weights import weight_shapes
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.parallel.placement import Window
from mindspore_palm.parallel.weights import deferred_init
from mindspore_palm.settings import model_config, read_yaml, settings_to_yaml

MODEL_FILES = names_pattern(*map(re.escape, (WEIGHTS, TOKENIZER, CONFIG)))
"""Names of the files that make a model."""
OWN_FILES = names_pattern(*map(re.escape, (WEIGHTS, TOKENIZER, CONFIG, CARD)))
"""Names of the files that are deleted with a model, and no others."""
UNSUPPORTED_DTYPES = ("F8", "F6", "F4")  # prefixes of safetensors dtypes that NumPy lacks


def save_model(
    folder: Path,
    weights: Mapping[str, np.ndarray | Source],
    tokenizer: bytes | None,
    settings: Settings,
    step: int,
    checkpoint: str = "",
    training: Training | None = None,
) -> None:
    """Writes a model's folder, under a temporary name first: it is complete, or it does not exist.

    Args:
        folder: to write; an earlier model there is replaced, and users' own files beside it stay.
        weights: arrays by name, or their sources, of which at most one block of rows is in memory at a time.
        tokenizer: its content; None leaves it out.
        settings: of the run.
        step: of the weights.
        checkpoint: identity of the checkpoint that the weights are of; empty if there is none.
        training: for the card and the header of the weights; None if it is unknown.

    Raises:
        OSError: a file could not be written; no temporary file is left.
    """
    about = {"format": "mindspore_palm", "step": str(step)} | ({SOURCE_CHECKPOINT: checkpoint} if checkpoint else {})
    if training:
        about[TRAINING] = training.to_header()
    card = model_card(settings.model, training, settings.data.seq_len).encode()
    temporary = folder.with_name(f"{folder.name}{TEMPORARY}")
    delete_model(temporary)
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        with write_atomically(temporary / WEIGHTS) as file:
            write_tensors(file, weights, about)
        contents = {TOKENIZER: tokenizer, CONFIG: settings_to_yaml(settings).encode(), CARD: card}
        for name, content in contents.items():
            if content is None:
                continue
            with write_atomically(temporary / name) as file:
                file.write(content)
        if folder.is_dir() and not delete_model(folder):
            move_into(folder, temporary)
        os.replace(temporary, folder)
    except BaseException:
        with contextlib.suppress(OSError):
            delete_model(temporary)
        raise


def delete_model(folder: Path) -> bool:
    """Deletes the files of a model, and then the folder if it is empty. Users' own files stay, and an edited card too.

    Returns:
        Whether the folder is gone.

    Raises:
        OSError: a file could not be deleted or renamed.
    """
    if folder.is_dir() and not folder.is_symlink():
        keep_edited(folder / CARD)
    return delete_own_files(folder, OWN_FILES)


def export(checkpoint: Checkpoint, folder: Path, settings: Settings, held_out: HeldOut | None = None) -> None:
    """Exports the weights of a checkpoint as a self-contained folder, without holding a full weight in memory.

    Args:
        checkpoint: of the run.
        folder: to write.
        settings: of the run.
        held_out: loss of these weights on all held-out text; None if it was not measured.

    Raises:
        OSError: a file could not be written; no temporary file is left.
        DamagedCheckpoint: a shard cannot be read.
    """
    tokenizer = (checkpoint.folder / TOKENIZER).read_bytes()
    weights: dict[str, StoredTensor | Merged | Repadded] = {**model_weights(checkpoint, settings.model)}
    shapes = weight_shapes(settings.model)
    for name in weights.keys() & shapes.keys():
        weights[name] = with_padding(name, weights[name], shapes[name])
    training = Training.of(checkpoint, settings, held_out)
    save_model(folder, weights, tokenizer, settings, checkpoint.step, checkpoint.identity, training)


def load(folder: str | Path) -> PaLM:
    """Loads the PaLM in a folder written by training, with its weights and its ``.config``.

    The folder of a checkpoint works as well, and that of a run, in which ``find_model`` finds the newest weights.
    Nothing that is read can execute code.

    Raises:
        UserError: names what is missing or does not fit.
    """
    folder = find_model(Path(folder))
    config = read_config(folder / CONFIG)
    weights = _checkpoint_weights(folder, config) if (folder / MANIFEST).exists() else read_weights(folder / WEIGHTS)
    for name, shape in weight_shapes(config).items():  # before memory is allocated for the network
        _check_weight(name, shape, weights)
    with deferred_init():  # and never initialised: all weights are set
        palm = PaLM(config)
    set_weights(palm, weights)
    return palm


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Loads the tokenizer in a folder that ``load`` opens.

    Raises:
        UserError: there is none, it is not a lossless tokenizer, or it has tokens that the model lacks.
    """
    file = find_model(Path(folder)) / TOKENIZER
    if not file.exists():
        raise UserError(f"there is no {file}; copy the tokenizer that the model was trained with there")
    tokenizer = Tokenizer(file)
    fit_vocabulary(read_config(file.with_name(CONFIG)), tokenizer.vocab_size, file)
    return tokenizer


def find_model(folder: Path) -> Path:
    """The folder of the model itself: the given folder, or the one with the newest weights in the folder of a run.

    In the folder of a run, that is ``final`` if it was exported from the run's current checkpoint, or if there is no
    checkpoint; else it is the checkpoint. If ``final`` exists and is not used, a message on standard error says so.

    Raises:
        UserError: there is none.
    """
    folder = existing_folder(folder)
    if (folder / WEIGHTS).exists() or (folder / MANIFEST).exists():
        return folder
    final = folder / FINAL
    newest = current_checkpoint(folder)
    if newest is None:
        if (final / WEIGHTS).exists():
            return final
        if steps := steps_in(folder / CHECKPOINTS):  # all are damaged: opening one reports the problem
            return folder / CHECKPOINTS / folder_name(steps[0])
        raise UserError(
            f"{folder}: neither {WEIGHTS} nor {FINAL}/{WEIGHTS} nor a checkpoint is there; name the folder of a "
            "finished run"
        )
    if not (final / WEIGHTS).exists():
        return newest.folder
    if is_model_of(final, newest):
        return final
    step = header_of(final / WEIGHTS).get("step")
    _warn(
        f"{final} holds {f'the model of step {step}' if step else 'another model'}, and the run is at another "
        f"checkpoint: opening {newest.folder}; name {final} to open that"
    )
    return newest.folder


@functools.cache
def _warn(message: str) -> None:
    """Prints a message on standard error, once: a command calls ``find_model`` several times."""
    print(message, file=sys.stderr, flush=True)


def weight_reader(folder: Path, config: PaLMConfig) -> Callable[[str, tuple[int, ...]], Callable[[Window], np.ndarray]]:
    """A reader for windows of the weights of a model or a checkpoint, which never holds a full weight in memory.

    Returns:
        A function of a weight's name and expected shape; it returns a function that reads a window of the weight.

    Raises:
        UserError: the folder holds no complete model; the function raises it if a weight is missing or does not fit.
    """
    weights: dict[str, StoredTensor | Merged | FileTensor]
    if (folder / MANIFEST).exists():
        checkpoint = Checkpoint(folder)
        checkpoint.verify(checkpoint.files_to_verify(this_rank(), current_layout().devices))
        weights = {**model_weights(checkpoint, config)}
    else:
        weights = {**file_tensors(folder / WEIGHTS)}

    def reader(name: str, shape: tuple[int, ...]) -> Callable[[Window], np.ndarray]:
        weight = {name: with_padding(name, weights[name], shape)} if name in weights else {}
        _check_weight(name, shape, weight)
        return weight[name].read

    return reader


def read_weights(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name.

    Raises:
        UserError: the file is missing, truncated or of another format.
    """
    try:
        with contextlib.suppress(ImportError):
            import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
        return load_file(file)
    except TypeError:
        raise UserError(f"{file} holds bfloat16, which NumPy alone does not know; pip install ml_dtypes") from None
    except FileNotFoundError:
        raise UserError(f"there is no {file}") from None
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        for name, tensor in file_tensors(file).items():
            if str(tensor.dtype).startswith(UNSUPPORTED_DTYPES):
                raise UserError(
                    f"{file}: {name} is {tensor.dtype}, which NumPy lacks; save weights as float32, float16 or bfloat16"
                ) from None
        raise UserError(f"{file}: this is not a complete safetensors file ({error})") from None


def read_metadata(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file.

    Raises:
        UserError: the file is missing, truncated or of another format.
    """
    file_tensors(file)  # for its error messages
    with safe_open(file, framework="numpy") as content:
        return content.metadata() or {}


def set_weights(palm: PaLM, weights: dict[str, np.ndarray]) -> None:
    """Sets the weights of a network by name.

    Raises:
        UserError: a name is missing or unknown, or a shape or dtype differs; no weight has changed then.
    """
    parameters = {p.name: p for p in palm.trainable_params()}
    if unknown := sorted(weights.keys() - parameters.keys()):
        raise UserError(f"the weights hold {unknown[0]}, which the configuration lacks ({len(unknown)} such)")
    for name, parameter in parameters.items():
        _check_weight(name, tuple(parameter.shape), weights)
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(weights[name]))


def weights_of(palm: PaLM) -> dict[str, np.ndarray]:
    """The arrays that this process holds of every weight, by name."""
    return {p.name: p.asnumpy() for p in palm.trainable_params()}


def _check_weight(
    name: str, shape: tuple[int, ...], weights: Mapping[str, np.ndarray | StoredTensor | Merged | FileTensor | Repadded]
) -> None:
    if name not in weights:
        raise UserError(f"the weights lack {name}; they are of another configuration")
    array = weights[name]
    if array.shape != shape or array.dtype != np.float32:
        actual = f"{array.dtype} {list(array.shape)}"
        raise UserError(f"the weight {name} is {actual}; the configuration wants float32 {list(shape)}")


def _checkpoint_weights(folder: Path, config: PaLMConfig) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint(folder)
    checkpoint.verify()
    return {name: weight.read() for name, weight in model_weights(checkpoint, config).items()}


def read_config(file: Path) -> PaLMConfig:
    """Reads the network's configuration from config.yaml.

    Raises:
        UserError: it is missing or not valid.
    """
    try:
        values = read_yaml(file.read_text(encoding="utf-8"), str(file))
        return model_config(values["model"], str(file))
    except FileNotFoundError:
        raise UserError(f"there is no {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {error}") from None
    except (KeyError, TypeError):
        raise UserError(f"{file}: the section 'model' is missing") from None

"""A trained model as a folder that opens alone: model.safetensors, tokenizer.model, config.yaml."""

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
from mindspore_palm.checkpoint.format import MANIFEST, Checkpoint, Stored, folder_name, steps_in
from mindspore_palm.checkpoint.identity import MODEL_OF, WEIGHTS, header_of, is_model_of
from mindspore_palm.checkpoint.merged import Merged, model_weights
from mindspore_palm.checkpoint.padding import Repadded, with_rows
from mindspore_palm.checkpoint.safetensors_stream import FileTensor, Source, file_tensors, write_tensors
from mindspore_palm.checkpoint.timeline import CHECKPOINTS, current_checkpoint
from mindspore_palm.config import PaLMConfig, Settings
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.data.vocabulary import fit_vocabulary
from mindspore_palm.errors import UserError
from mindspore_palm.files import expanded, write_atomically
from mindspore_palm.model.palm import PaLM
from mindspore_palm.model.weights import weight_shapes
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.parallel.placement import Window
from mindspore_palm.parallel.weights import deferred_init
from mindspore_palm.settings import model_config, read_yaml, settings_to_yaml

TOKENIZER, CONFIG = "tokenizer.model", "config.yaml"
MODEL_FILES = re.compile(r"(model\.safetensors|tokenizer\.model|config\.yaml)(\.[0-9]+\.tmp)?")
"""Names of a model's files: no other is ever deleted."""
LACKING = ("F8", "F6", "F4")  # how safetensors' names of types begin that NumPy has not


def save_model(
    folder: Path,
    weights: Mapping[str, np.ndarray | Source],
    tokenizer: bytes | None,
    settings: Settings,
    step: int,
    checkpoint: str = "",
) -> None:
    """Writes the folder under another name first: it is there whole, or not at all.

    Args:
        folder: to write; an earlier model there is replaced, and what others put beside it stays.
        weights: arrays by name, or where they come from: of those, no more than a block of rows is in memory at a time.
        tokenizer: its content; None leaves it out.
        settings: of the run.
        step: how many steps the weights have taken.
        checkpoint: identity of the checkpoint that they are of; empty for others.

    Raises:
        OSError: a file could not be written; nothing is left behind.
    """
    about = {"format": "mindspore_palm", "step": str(step)} | ({MODEL_OF: checkpoint} if checkpoint else {})
    temporary = folder.with_name(f"{folder.name}.tmp")
    delete_own_files(temporary, MODEL_FILES)
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        with write_atomically(temporary / WEIGHTS) as file:
            write_tensors(file, weights, about)
        for name, content in {TOKENIZER: tokenizer, CONFIG: settings_to_yaml(settings).encode()}.items():
            if content is None:
                continue
            with write_atomically(temporary / name) as file:
                file.write(content)
        if folder.is_dir() and not delete_own_files(folder, MODEL_FILES):
            move_into(folder, temporary)
        os.replace(temporary, folder)
    except BaseException:
        with contextlib.suppress(OSError):
            delete_own_files(temporary, MODEL_FILES)
        raise


def export(checkpoint: Checkpoint, folder: Path, settings: Settings) -> None:
    """Writes the weights of a checkpoint as a folder that opens alone, without holding any of them whole.

    Raises:
        OSError: a file could not be written; nothing is left behind.
        DamagedCheckpoint: a slice cannot be read.
    """
    tokenizer = (checkpoint.folder / TOKENIZER).read_bytes()
    weights, shapes = model_weights(checkpoint, settings.model), weight_shapes(settings.model)
    weights |= {name: with_rows(name, weights[name], shapes[name]) for name in weights.keys() & shapes.keys()}
    save_model(folder, weights, tokenizer, settings, checkpoint.step, checkpoint.identity)


def load(folder: str | Path) -> PaLM:
    """The PaLM in a folder that training left, with its weights and its ``.config``.

    A checkpoint's folder works as well, and a run's own: its newest weights are taken, as ``find_model`` does it.
    Nothing that is read can execute code.

    Raises:
        UserError: what is missing or does not fit, by name.
    """
    folder = find_model(Path(folder))
    config = read_config(folder / CONFIG)
    weights = _checkpoint_weights(folder, config) if (folder / MANIFEST).exists() else read_weights(folder / WEIGHTS)
    for name, shape in weight_shapes(config).items():  # before a network of these sizes takes its memory
        _check_weight(name, shape, weights)
    with deferred_init():  # never: all of them are set
        palm = PaLM(config)
    set_weights(palm, weights)
    return palm


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer in a folder that ``load`` opens.

    Raises:
        UserError: there is none, it is no lossless tokenizer, or it has tokens that the model does not have.
    """
    file = find_model(Path(folder)) / TOKENIZER
    if not file.exists():
        raise UserError(f"there is no {file}; copy the tokenizer that the model was trained with there")
    tokenizer = Tokenizer(file)
    fit_vocabulary(read_config(file.with_name(CONFIG)), tokenizer.vocab_size, file)
    return tokenizer


def find_model(folder: Path) -> Path:
    """The folder with the model itself: the folder; in that of a run, where its newest weights are.

    That is ``final`` if it was exported from the checkpoint at which the run stands, or if there is no checkpoint; else
    that checkpoint. Where it is not the ``final`` that is there, a line on standard error says so.

    Raises:
        UserError: there is none.
    """
    folder = expanded(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if (folder / WEIGHTS).exists() or (folder / MANIFEST).exists():
        return folder
    final = folder / "final"
    newest = current_checkpoint(folder)
    if newest is None:
        if (final / WEIGHTS).exists():
            return final
        if steps := steps_in(folder / CHECKPOINTS):  # none is whole: opening one says what is wrong with it
            return folder / CHECKPOINTS / folder_name(steps[0])
        raise UserError(
            f"{folder}: neither {WEIGHTS} nor final/{WEIGHTS} nor a checkpoint is there; name the folder of a finished "
            "run"
        )
    if not (final / WEIGHTS).exists():
        return newest.folder
    if is_model_of(final, newest):
        return final
    step = header_of(final / WEIGHTS).get("step")
    _tell(
        f"{final} holds {f'the model of step {step}' if step else 'another model'}, and the run stands at another one: "
        f"opening {newest.folder}; name {final} to open that"
    )
    return newest.folder


@functools.cache
def _tell(text: str) -> None:
    """Once: a command looks for its model several times. What it writes itself is on standard output."""
    print(text, file=sys.stderr, flush=True)


def weight_reader(folder: Path, config: PaLMConfig) -> Callable[[str, tuple[int, ...]], Callable[[Window], np.ndarray]]:
    """How to read windows of the weights of a model or a checkpoint, without holding any of them whole.

    Returns:
        A function from a weight's name and wanted shape to one that reads a window of it.

    Raises:
        UserError: the folder holds no whole model; so does the function, where a weight is missing or does not fit.
    """
    if (folder / MANIFEST).exists():
        checkpoint = Checkpoint(folder)
        checkpoint.verify(checkpoint.share_of_files(this_rank(), current_layout().devices))
        weights = model_weights(checkpoint, config)
    else:
        weights = file_tensors(folder / WEIGHTS)

    def reader(name: str, shape: tuple[int, ...]) -> Callable[[Window], np.ndarray]:
        found = {name: with_rows(name, weights[name], shape)} if name in weights else {}
        _check_weight(name, shape, found)
        return found[name].read

    return reader


def read_weights(file: Path) -> dict[str, np.ndarray]:
    """Name to array of a safetensors file.

    Raises:
        UserError: the file is missing, cut off or of another kind.
    """
    try:
        with contextlib.suppress(ImportError):
            import ml_dtypes  # noqa: F401 - where it is installed, NumPy knows bfloat16
        return load_file(file)
    except TypeError:
        raise UserError(f"{file} holds bfloat16, which NumPy alone does not know; pip install ml_dtypes") from None
    except FileNotFoundError:
        raise UserError(f"there is no {file}") from None
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        for name, tensor in file_tensors(file).items():
            if str(tensor.dtype).startswith(LACKING):
                raise UserError(
                    f"{file}: {name} is {tensor.dtype}, which NumPy lacks; save weights as float32, float16 or bfloat16"
                ) from None
        raise UserError(f"{file}: this is not a whole safetensors file ({error})") from None


def read_metadata(file: Path) -> dict[str, str]:
    """The text in the header of a safetensors file.

    Raises:
        UserError: the file is missing, cut off or of another kind.
    """
    file_tensors(file)  # whose errors are sentences
    with safe_open(file, framework="numpy") as content:
        return content.metadata() or {}


def set_weights(palm: PaLM, weights: dict[str, np.ndarray]) -> None:
    """Gives a network its weights by name.

    Raises:
        UserError: a name is missing or unknown, or a shape or type differs; nothing is changed then.
    """
    parameters = {p.name: p for p in palm.trainable_params()}
    if unknown := sorted(weights.keys() - parameters.keys()):
        raise UserError(f"the weights hold {unknown[0]}, which the configuration has not ({len(unknown)} such)")
    for name, parameter in parameters.items():
        _check_weight(name, tuple(parameter.shape), weights)
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(weights[name]))


def weights_of(palm: PaLM) -> dict[str, np.ndarray]:
    """Name to array of what this process holds of every weight."""
    return {p.name: p.asnumpy() for p in palm.trainable_params()}


def _check_weight(
    name: str, shape: tuple[int, ...], weights: Mapping[str, np.ndarray | Stored | Merged | FileTensor | Repadded]
) -> None:
    if name not in weights:
        raise UserError(f"the weights lack {name}; they are of another configuration")
    array = weights[name]
    if array.shape != shape or array.dtype != np.float32:
        found = f"{array.dtype} {list(array.shape)}"
        raise UserError(f"the weight {name} is {found}; the configuration wants float32 {list(shape)}")


def _checkpoint_weights(folder: Path, config: PaLMConfig) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint(folder)
    checkpoint.verify()
    return {name: weight.read() for name, weight in model_weights(checkpoint, config).items()}


def read_config(file: Path) -> PaLMConfig:
    """The sizes of the network in the folder of a model.

    Raises:
        UserError: there are none, or they do not fit.
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

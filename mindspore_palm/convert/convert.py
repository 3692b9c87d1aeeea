"""From one format to another, checked by the logits of both before the result takes its name."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from mindspore import Tensor

from mindspore_palm.checkpoint.model_folder import TOKENIZER, WEIGHTS, set_weights
from mindspore_palm.config import PaLMConfig
from mindspore_palm.convert.conceptofmind import CONCEPTOFMIND
from mindspore_palm.convert.flaxformer import Flaxformer
from mindspore_palm.convert.forward import NUMPY
from mindspore_palm.convert.huggingface import INDEX, HuggingFace
from mindspore_palm.convert.lucidrains import LUCIDRAINS
from mindspore_palm.convert.mindir import MindIR
from mindspore_palm.convert.model import SEQ_LEN, Computed, Format, Model, Options, check_finite
from mindspore_palm.convert.native import Native
from mindspore_palm.convert.widen import widen
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.data.vocabulary import count_tokens, fit_vocabulary, padding_note
from mindspore_palm.errors import UserError
from mindspore_palm.model.palm import PaLM
from mindspore_palm.parallel.context import open_device
from mindspore_palm.parallel.weights import deferred_init

NATIVE = "mindspore_palm"
FORMATS: Mapping[str, Format] = {
    NATIVE: Native(),
    "lucidrains": LUCIDRAINS,
    "conceptofmind": CONCEPTOFMIND,
    "flaxformer": Flaxformer(),
    "huggingface-safetensors": HuggingFace(),
    "mindir": MindIR(),
}
MODEL = (WEIGHTS, INDEX)  # what says that a folder is a converted model
SEED = 20220405  # of the random tokens
# Fields of a configuration that decide what a network computes.
TOLERANCE = 1e-4  # of the largest logit: far above rounding, far below a kernel in the wrong place


def convert(
    source: tuple[str, Path],
    target: tuple[str, Path],
    options: Options,
    say: Callable[[str], None],
    tokenizer: Path | None = None,
    seq_len: int | None = None,
    overwrite: bool = False,
    wide: bool = False,
) -> float:
    """Reads a model from one place and writes it to another.

    Args:
        source: format and place.
        target: format and place; nothing must be there yet.
        options: see there.
        say: told what was done.
        tokenizer: a SentencePiece model to go with it.
        seq_len: tokens that it was trained on at once, where the source does not say.
        overwrite: whether the target may be replaced.
        wide: whether to go by ``widen``, for packages that have layer norms only.

    Returns:
        The largest difference of the logits of both on random tokens.

    Raises:
        UserError: what cannot be had exactly, or what must be mended; the target is then as it was.
    """
    (source_name, source_path), (target_name, target_path) = source, target
    reader, writer = find_format(source_name), find_format(target_name)
    if target_path.exists() and not overwrite:
        raise UserError(f"{target_path} is there already; choose another name, or replace it by --overwrite")
    if target_path.is_dir() and any(target_path.iterdir()) and not any((target_path / name).exists() for name in MODEL):
        raise UserError(f"{target_path} holds other things than a converted model, and is not replaced; choose a name")
    open_device()
    model = reader.read(source_path, options)
    check_finite(model.weights, str(source_path))
    model = _with_tokenizer(model, tokenizer, source_path)
    model = dataclasses.replace(model, seq_len=seq_len or model.seq_len)
    if wide:
        model = widen(model)
    config = model.config
    say(
        f"{source_path}: {config.parameter_count():,} parameters; layers {config.layers}, d_model {config.d_model}, "
        f"heads {config.heads}, head_dim {config.head_dim}, d_ff {config.d_ff}, {config.vocab_size:,} tokens"
    )
    for note in model.notes:
        say(f"note: {note}")
    if target_name == NATIVE and model.seq_len is None:
        say(f"note: {source_path} does not say on how many tokens at once it was trained: {SEQ_LEN:,}, or --seq-len N")
    tokens = np.random.default_rng(SEED).integers(0, config.vocab_size, options.shape, np.int32)
    expected = reader.logits(source_path, tokens, options)
    target_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target_path.name}.", dir=target_path.parent) as folder:
        unchecked = Path(folder) / target_path.name
        writer.write(model, unchecked, options)
        known = dataclasses.replace(options, norm_scale=config.norm_scale, vocab_size=config.vocab_size)
        found = writer.logits(unchecked, tokens, known)
        sides = [expected, found]
        if all(NUMPY in side.by for side in sides):  # one code for both proves little
            sides.append(_by_network(model, tokens))
        difference, largest = _compare([side.logits for side in sides])
        said = f"largest difference {difference:.3g}, largest logit {largest:.3g}"
        if not difference <= TOLERANCE * largest:
            raise UserError(f"the logits of {source_path} and of the converted model differ: {said}; nothing was kept")
        if writer.is_read:
            _check_bits(model, writer.read(unchecked, known), target_path)
        if target_path.exists():
            os.replace(target_path, Path(folder) / "replaced")
        os.replace(unchecked, target_path)
    also = "; and, as both are by NumPy, the network of this package" if len(sides) > 2 else ""
    say(f"compared: {source_path} by {expected.by}; {target_path} by {found.by}{also}")
    say(f"{target_path}: logits of both on {tokens.shape[0]} x {tokens.shape[1]} random tokens: {said}")
    return difference


def find_format(name: str) -> Format:
    """A format by its name.

    Raises:
        UserError: there is none.
    """
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def _with_tokenizer(model: Model, file: Path | None, source: Path) -> Model:
    """A model with a tokenizer, by the one rule for its size; ``file`` None is the one that came with it, if any."""
    if file is not None:
        tokenizer = Tokenizer(file)
        tokens, name, content = tokenizer.vocab_size, file, tokenizer.serialized
    elif model.tokenizer is not None:
        tokens, name, content = count_tokens(model.tokenizer), source / TOKENIZER, model.tokenizer
    else:
        return model
    if tokens is None:
        raise UserError(f"{name}: this is not a SentencePiece model; replace it by --tokenizer")
    fit_vocabulary(model.config, tokens, name)  # refuses one that is too large
    note = padding_note(model.config, tokens, name)
    notes = (*model.notes, note) if note else model.notes
    return dataclasses.replace(model, tokenizer=content, notes=notes)


def _by_network(model: Model, tokens: np.ndarray) -> Computed:
    """Logits of a model by the network that will be used."""
    with deferred_init():  # never: all of them are set
        palm = PaLM(model.config)
    set_weights(palm, model.weights)
    return Computed(palm(Tensor(tokens)).asnumpy(), "the network of this package")


def _compare(logits: list[np.ndarray]) -> tuple[float, float]:
    """The largest difference to the first of several, and its largest logit."""
    first = logits[0]
    return max(float(np.abs(other - first).max()) for other in logits[1:]), float(np.abs(first).max())


def _check_bits(model: Model, again: Model, path: Path) -> None:
    """Checks that a written file reads back to the same bits, as logits may hide small changes.

    Raises:
        UserError: it does not.
    """
    names = ("layers", "d_model", "heads", "head_dim", "d_ff", "vocab_size", "padded_vocab", *PaLMConfig.switches())
    for name in names:
        if getattr(model.config, name) != getattr(again.config, name):
            raise UserError(f"{path} would be read with another model.{name}; nothing was kept")
    for name in model.weights.keys() | again.weights.keys():
        if name not in again.weights or not np.array_equal(model.weights.get(name, ()), again.weights[name]):
            raise UserError(f"{path} would be read with another {name} than was written; nothing was kept")

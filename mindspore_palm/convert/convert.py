"""Conversion between formats. The logits of both sides are compared before the result is kept."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from mindspore import Tensor

from mindspore_palm.checkpoint.model_folder import set_weights
from mindspore_palm.config import PaLMConfig
from mindspore_palm.convert.card import move_into_place, write_card
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
from mindspore_palm.file_names import TOKENIZER, WEIGHTS
from mindspore_palm.model.palm import PaLM
from mindspore_palm.parallel.context import open_device
from mindspore_palm.parallel.fused import portable
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
MARKERS = (WEIGHTS, INDEX)  # files by which a folder is known as a converted model
SEED = 20220405  # of the random tokens
# Fields of a configuration that decide what a network computes.
SWITCHES = tuple(PaLMConfig.switches())
TOLERANCE = 1e-4  # relative to the largest logit: far above rounding, far below a misplaced kernel


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
    """Converts a model from one format to another.

    Args:
        source: format and path.
        target: format and path, which must not exist yet.
        options: what a file may leave open.
        say: prints a line to the user.
        tokenizer: file of a tokenizer for the converted model.
        seq_len: training sequence length in tokens, if the source does not record it.
        overwrite: whether the target may be replaced.
        wide: whether to ``widen`` the model, for packages that have only layer norms.

    Returns:
        The largest difference between the logits of both sides on random tokens.

    Raises:
        UserError: what cannot be converted exactly, or what must be fixed; the target is then unchanged.
    """
    (source_name, source_path), (target_name, target_path) = source, target
    reader, writer = find_format(source_name), find_format(target_name)
    if target_path.exists() and not overwrite:
        raise UserError(f"{target_path} exists already; choose another name, or replace it with --overwrite")
    is_model = any((target_path / name).exists() for name in MARKERS)
    if target_path.is_dir() and any(target_path.iterdir()) and not is_model:
        raise UserError(f"{target_path} holds files that are not a converted model's; choose another name")
    open_device(options.device, "--device")
    model = reader.read(source_path, options)
    check_finite(model.weights, str(source_path))
    model = _with_tokenizer(model, tokenizer, source_path)
    model = dataclasses.replace(model, seq_len=seq_len or model.seq_len)
    if wide:
        model = widen(model)
    config = model.config
    _check_length(config, model.seq_len, options.shape[1])
    say(
        f"{source_path}: {config.parameter_count():,} parameters; layers {config.layers}, d_model {config.d_model}, "
        f"heads {config.heads}, head_dim {config.head_dim}, d_ff {config.d_ff}, {config.vocab_size:,} tokens"
    )
    for note in model.notes:
        say(f"note: {note}")
    if target_name == NATIVE and model.seq_len is None:
        say(f"note: {source_path} does not record its training sequence length; {SEQ_LEN:,} is used, or --seq-len N")
    tokens = np.random.default_rng(SEED).integers(0, config.vocab_size, options.shape, np.int32)
    expected = reader.logits(source_path, tokens, options)
    target_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target_path.name}.", dir=target_path.parent) as folder:
        unchecked = Path(folder) / target_path.name
        writer.write(model, unchecked, options)
        known = dataclasses.replace(options, norm_scale=config.norm_scale, vocab_size=config.vocab_size)
        converted = writer.logits(unchecked, tokens, known)
        sides = [expected, converted]
        if all(NUMPY in side.by for side in sides):  # the same code on both sides proves little
            sides.append(_by_network(model, tokens))
        difference, largest = _compare([side.logits for side in sides])
        result = f"largest difference {difference:.3g}, largest logit {largest:.3g}"
        if not difference <= TOLERANCE * largest:
            raise UserError(
                f"the logits of {source_path} and of the converted model differ: {result}; nothing was kept"
            )
        if writer.is_read:
            _check_bits(model, writer.read(unchecked, known), target_path)
        write_card(unchecked, target_name, model)
        move_into_place(unchecked, target_path, Path(folder) / "replaced")
    also = "; and, as both are by NumPy, the network of this package" if len(sides) > 2 else ""
    say(f"compared: {source_path} by {expected.by}; {target_path} by {converted.by}{also}")
    say(f"{target_path}: logits of both on {tokens.shape[0]} x {tokens.shape[1]} random tokens: {result}")
    return difference


def _check_length(config: PaLMConfig, seq_len: int | None, compared: int) -> None:
    """Checks that learned positions, if the model has them, reach as far as they are asked for."""
    for option, length in (("--seq-len", seq_len or 0), ("--length", compared)):
        if config.longest is not None and length > config.longest:
            raise UserError(
                f"{option} {length}: the model has learned {config.longest} positions; set it to at most "
                f"{config.longest}"
            )


def find_format(name: str) -> Format:
    """The format of a name.

    Raises:
        UserError: no format has this name.
    """
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def _with_tokenizer(model: Model, file: Path | None, source: Path) -> Model:
    """A model with the tokenizer of a file, or else with its own, if any, once the vocabulary size is checked."""
    vocab_size: int | None
    if file is not None:
        tokenizer = Tokenizer(file)
        vocab_size, name, content = tokenizer.vocab_size, file, tokenizer.serialized
    elif model.tokenizer is not None:
        vocab_size, name, content = count_tokens(model.tokenizer), source / TOKENIZER, model.tokenizer
    else:
        return model
    if vocab_size is None:
        raise UserError(f"{name}: this is not a tokenizer that can be read; replace it with --tokenizer")
    fit_vocabulary(model.config, vocab_size, name)  # refuses one that is too large
    note = padding_note(model.config, vocab_size, name)
    notes = (*model.notes, note) if note else model.notes
    return dataclasses.replace(model, tokenizer=content, notes=notes)


def _by_network(model: Model, tokens: np.ndarray) -> Computed:
    """Logits of a model by this package's network, in MindSpore's own ops: those of a MindIR have the same bits."""
    with deferred_init(), portable():  # never drawn: every weight is set
        palm = PaLM(model.config)
    set_weights(palm, model.weights)
    return Computed(palm(Tensor(tokens)).asnumpy(), "the network of this package")


def _compare(logits: list[np.ndarray]) -> tuple[float, float]:
    """Largest difference from the first logits, and the largest of the first logits."""
    first = logits[0]
    return max(float(np.abs(other - first).max()) for other in logits[1:]), float(np.abs(first).max())


def _check_bits(model: Model, again: Model, path: Path) -> None:
    """Checks that a written file reads back to the same bits, because logits can hide small changes.

    Raises:
        UserError: it does not.
    """
    names = ("layers", "d_model", "heads", "head_dim", "d_ff", "vocab_size", "padded_vocab", *PaLMConfig.switches())
    for name in names:
        if getattr(model.config, name) != getattr(again.config, name):
            raise UserError(f"{path} would be read back with a different model.{name}; nothing was kept")
    for name in model.weights.keys() | again.weights.keys():
        if name not in again.weights or not np.array_equal(model.weights.get(name, ()), again.weights[name]):
            raise UserError(f"{path} would be read back with a different {name}; nothing was kept")

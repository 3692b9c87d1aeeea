"""Model zoo, networks by name: ``create_model("palm_8b", layers=2)``, ``list_models("palm*")``.

The functions and their arguments are those of MindCV's registry and model factory. No weights are published: a trained
model is a folder that this package has written.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from mindspore_palm.checkpoint.model_folder import find_model, load, read_config, set_weights
from mindspore_palm.config import PaLMConfig
from mindspore_palm.convert.huggingface import CONFIG as CONFIG_JSON
from mindspore_palm.convert.huggingface import HuggingFace
from mindspore_palm.convert.model import Options, setting
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import CONFIG, WEIGHTS
from mindspore_palm.files import expanded
from mindspore_palm.model.palm import PaLM
from mindspore_palm.parallel.weights import deferred_init
from mindspore_palm.presets import PRESETS
from mindspore_palm.settings import model_config

Patterns = str | Sequence[str]
"""Wildcards as for files, one or several."""


def list_models(
    pattern: Patterns = "", *, filter: Patterns = "", pretrained: bool = False, exclude_filters: Patterns = ""
) -> list[str]:
    """Names of models, smallest first: ``list_models("palm_*b")``.

    Args:
        pattern: wildcards as for files; a name that matches one of several is listed. Empty: all names.
        filter: the same, by the name that MindCV gives it.
        pretrained: only models with published weights. There are none.
        exclude_filters: wildcards of names to leave out.

    Raises:
        UserError: both ``pattern`` and ``filter`` are given.
    """
    if pattern and filter:
        raise UserError("list_models: pattern and filter are the same argument; give one of them")
    wanted, unwanted = _patterns(pattern or filter or "*"), _patterns(exclude_filters)
    names = [name for name in PRESETS if is_model_pretrained(name)] if pretrained else PRESETS
    return [name for name in names if _matches(name, wanted) and not _matches(name, unwanted)]


def is_model(name: str) -> bool:
    """Whether a model has this name."""
    return name in PRESETS


def is_model_pretrained(name: str) -> bool:
    """Whether published weights exist for a model: never, as Google published none and this package has none."""
    return False


def model_entrypoint(name: str) -> Callable[..., PaLM]:
    """The function that creates a model: ``model_entrypoint("palm_8b")(layers=2)``.

    Raises:
        UserError: the name is unknown.
    """
    _check_name(name)
    return partial(create_model, name)


def create_model(
    name: str,
    *,
    seed: int = 0,
    pretrained: bool | str | Path = False,
    checkpoint_path: str | Path = "",
    **overrides: Any,
) -> PaLM:
    """A PaLM of a named size, with initial weights or with those of a trained model.

    Initial weights take no memory until they are needed: they are drawn when the network is first called or compiled
    into another one, or by ``init_parameters_data()``. Before that, a single weight can be read with its ``asnumpy()``.

    Args:
        name: one of ``list_models()``.
        seed: decides the initial weights, together with their names; without effect on a trained model.
        pretrained: a trained model: the folder of a run, of a checkpoint or of a model that this package has written,
            in its own format or as huggingface-safetensors; or the model.safetensors in it. False for initial weights.
        checkpoint_path: the same, by the name that MindCV gives it.
        overrides: fields of ``PaLMConfig`` that differ from the named size.

    Raises:
        UserError: the name is unknown, a size is invalid, there is no such trained model, or it is of another size.
    """
    _check_name(name)
    config = model_config({**overrides, "preset": name}, f"create_model({name!r})")
    if pretrained and checkpoint_path:
        raise UserError("create_model: pretrained and checkpoint_path both name a trained model; give one of them")
    trained = checkpoint_path or pretrained
    if trained is True or (isinstance(trained, str) and is_model(trained) and not Path(trained).exists()):
        raise UserError(
            f"there are no published weights of {name if trained is True else trained}; name the folder of a run or of "
            "a model with checkpoint_path"
        )
    if trained:
        return _trained(config, expanded(trained), name)
    with deferred_init():
        return _PaLMOnDemand(config, seed)


def _trained(config: PaLMConfig, path: Path, name: str) -> PaLM:
    """The trained model in a file or folder, whose configuration must be the one that was asked for."""
    if path.is_file() and path.name != WEIGHTS:
        raise UserError(
            f"{path}: a trained model is the file {WEIGHTS} beside its {CONFIG}; name that, or its folder. palm "
            "convert makes one of other formats"
        )
    folder = path.parent if path.is_file() else path
    if (folder / CONFIG_JSON).exists() and not (folder / CONFIG).exists():
        model = HuggingFace().read(folder, Options())
        _check_same(config, model.config, folder, name)
        with deferred_init():  # and never drawn: all weights are set
            palm = PaLM(model.config)
        set_weights(palm, model.weights)
        return palm
    folder = find_model(folder)
    _check_same(config, read_config(folder / CONFIG), folder, name)
    return load(folder)


def _check_same(wanted: PaLMConfig, stored: PaLMConfig, folder: Path, name: str) -> None:
    """Checks that a stored model has the configuration that was asked for.

    Raises:
        UserError: it has another one; names the arguments with which it opens.
    """
    differs = {
        field: value
        for field, value in stored.model_dump().items()
        if field != "preset" and value != getattr(wanted, field)
    }
    if differs:
        text = ", ".join(f"{field}={value!r}" for field, value in differs.items())
        here = ", ".join(setting(getattr(wanted, field)) for field in differs)
        raise UserError(
            f"{folder} holds another network than {name} with these arguments: it has {text}, and here it would be "
            f"{here}; pass those, or open the folder with load"
        )


def _check_name(name: str) -> None:
    if not is_model(name):
        near = difflib.get_close_matches(str(name), PRESETS, n=1)
        fix = f"did you mean {near[0]}?" if near else f"there are {', '.join(PRESETS)}"
        raise UserError(f"no model is called {name!r}; {fix}")


def _patterns(patterns: Patterns) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class _PaLMOnDemand(PaLM):
    """A PaLM whose weights are drawn before it is compiled, on its own or inside a function.

    MindSpore draws the weights of a Cell that is called, and of Cells inside it. Weights of a Cell that is used in a
    function under ``ms.jit`` or ``ms.grad`` stay undrawn and read as zeros (MS-21).
    """

    @property
    def cell_init_args(self) -> str:
        """The first attribute that MindSpore reads of every Cell that it compiles."""
        self.init_parameters_data()
        return super().cell_init_args

"""Model zoo, networks by name: ``create_model("palm_8b", layers=2)``, ``list_models("palm*")``."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import Any

from mindspore_palm.errors import UserError
from mindspore_palm.model.palm import PaLM
from mindspore_palm.parallel.weights import deferred_init
from mindspore_palm.presets import PRESETS
from mindspore_palm.settings import model_config


def list_models(pattern: str = "*") -> list[str]:
    """Names of models, smallest first; ``pattern`` has wildcards as for files: ``list_models("palm_*b")``."""
    return [name for name in PRESETS if fnmatchcase(name, pattern)]


def create_model(name: str, *, seed: int = 0, **overrides: Any) -> PaLM:
    """A PaLM of a named size, with initial weights. ``load(folder)`` opens a trained one.

    Weights take no memory until they are needed: they are drawn when the network is first called or compiled into
    another one, or by ``init_parameters_data()``. Before that, a single weight can be read with its ``asnumpy()``.

    Args:
        name: one of ``list_models()``.
        seed: decides the initial weights, together with their names.
        overrides: fields of ``PaLMConfig`` that differ from the named size.

    Raises:
        UserError: the name is unknown, or a size is invalid.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1)
        fix = f"did you mean {near[0]}?" if near else f"there are {', '.join(PRESETS)}"
        raise UserError(f"no model is called {name!r}; {fix}")
    config = model_config({**overrides, "preset": name}, f"create_model({name!r})")
    with deferred_init():
        return _PaLMOnDemand(config, seed)


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

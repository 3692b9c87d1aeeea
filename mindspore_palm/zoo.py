"""Networks by name, as model zoos give them: ``create_model("palm_8b", layers=2)``, ``list_models("palm*")``."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import Any

from mindspore_palm.config import PRESETS
from mindspore_palm.errors import UserError
from mindspore_palm.model.palm import PaLM
from mindspore_palm.parallel.weights import deferred_init
from mindspore_palm.settings import model_config


def list_models(pattern: str = "*") -> list[str]:
    """The names that ``create_model`` knows, smallest first; ``pattern`` as for files: ``list_models("palm_*b")``."""
    return [name for name in PRESETS if fnmatchcase(name, pattern)]


def create_model(name: str, *, seed: int = 0, **overrides: Any) -> PaLM:
    """A PaLM of a named size, with initial weights; those of a trained one come by ``load(folder)``.

    It takes no memory until weights are asked for: they are drawn when the network is first called or compiled into
    something else, or by ``init_parameters_data()``. Until then, a single one can be read by its ``asnumpy()``.

    Args:
        name: one of ``list_models()``.
        seed: decides the initial weights, together with their names.
        overrides: what differs from the named size, by the names of ``PaLMConfig``.

    Raises:
        UserError: there is no such name, or a size that does not fit.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1)
        fix = f"did you mean {near[0]}?" if near else f"there are {', '.join(PRESETS)}"
        raise UserError(f"no model is called {name!r}; {fix}")
    config = model_config({**overrides, "preset": name}, f"create_model({name!r})")
    with deferred_init():
        return _PaLMOnDemand(config, seed)


class _PaLMOnDemand(PaLM):
    """A PaLM whose weights are drawn before it is compiled, wherever it stands.

    MindSpore draws the weights of a Cell that is called, and of its parts. Those of a Cell that stands in a function
    under ``ms.jit`` or ``ms.grad`` it leaves undrawn, and reads zeros (MS-21).
    """

    @property
    def cell_init_args(self) -> str:
        """What MindSpore asks of every Cell that it compiles, before anything else that it needs."""
        self.init_parameters_data()
        return super().cell_init_args

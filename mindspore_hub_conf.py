"""Entry point of MindSpore Hub: ``create_network(name)``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the Hub opens this file by its path

from mindspore_palm import create_model, list_models

if TYPE_CHECKING:
    from mindspore_palm import PaLM


def create_network(name: str, *args: Any, **kwargs: Any) -> PaLM:
    """A PaLM of a named size; ``kwargs`` as for ``mindspore_palm.create_model``.

    Raises:
        NotImplementedError: the name is unknown.
        TypeError: positional arguments.
    """
    if name not in list_models():
        raise NotImplementedError(f"{name} is not implemented in the repo; there are {', '.join(list_models())}")
    return create_model(name, *args, **kwargs)

"""Entry point of MindSpore Hub: ``create_network(name)``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the Hub opens this file by its path

from mindspore_palm import create_model, is_model, list_models

if TYPE_CHECKING:
    from mindspore_palm import PaLM


def create_network(name: str, *args: Any, **kwargs: Any) -> PaLM:
    """A PaLM of a named size; ``kwargs`` as for ``mindspore_palm.create_model``.

    ``mindspore_hub.load`` calls this with what it is given after the name, but for ``pretrained``, which it keeps for
    itself: a trained model is named with ``checkpoint_path``.

    Raises:
        NotImplementedError: the name is unknown.
        TypeError: positional arguments.
        UserError: as ``create_model``.
    """
    if not is_model(name):
        raise NotImplementedError(f"{name} is not implemented in the repo; there are {', '.join(list_models())}")
    return create_model(name, *args, **kwargs)

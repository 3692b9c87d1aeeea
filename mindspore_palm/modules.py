"""Importing a package without a large one that it would import only because that is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(name: str) -> Iterator[None]:
    """Imports in a ``with`` block do not find this module, unless it has been imported before.

    Args:
        name: of a top-level module.
    """
    if name in sys.modules:
        yield
        return
    # None is Python's own way to make an import fail.
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]

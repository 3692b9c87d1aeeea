"""Makes the package of this checkout importable, for the scripts beside this file: aliases of ``palm`` commands."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# Python puts this folder first, and evaluate is the name of a package that the harness needs: the checkout replaces it.
sys.path[:] = [str(FOLDER.parent), *(path for path in sys.path if path not in (str(FOLDER), str(FOLDER.parent)))]

from mindspore_palm.cli.palm import alias  # noqa: E402 - found by the path above

__all__ = ["alias"]

"""``python -m mindspore_palm`` is the command ``palm``, also in workers, which msrun starts with this file's path."""

from __future__ import annotations

import os
import sys

if not __package__:  # started by path: the folder of this file is first, and its modules hide others, such as random
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from mindspore_palm.cli.palm import main

if __name__ == "__main__":
    sys.exit(main())

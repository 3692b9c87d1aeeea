"""Compiled graphs are kept: a network that was compiled before, on this machine and from the same code, is loaded.

MindSpore compiles a training step of a small network in seconds, and loads it in tenths of one. ``install`` has it
look in the user's cache first; ``MINDSPORE_PALM_GRAPHS`` names another folder, or is ``off``. ``key`` decides which
networks are the same, and ``store`` keeps the files.

Only networks of one process on a CPU are kept. A partitioned network also has groups of ranks and a layout of its
weights, which MindSpore keeps beside the graph, and a GPU or NPU kernels.
"""

from __future__ import annotations

from mindspore_palm.graph_cache.compiler import install

__all__ = ["install"]

"""LoRA (arXiv 2106.09685) on PaLM's fused kernels: ``W + alpha/rank * A B`` for q_wi, kv and o_wo of every block.

A and B are trained; W is frozen. The sum is taken before the kernel is used, so the network's matmuls stay the same,
and so does the result when the kernel is merged.
"""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.initial import initial_parameter
from mindspore_palm.model.palm import PaLM
from mindspore_palm.model.projection import Kernel
from mindspore_palm.model.weights import KERNELS, FanIn, Weight, weights
from mindspore_palm.parallel.axes import shard
from mindspore_palm.parallel.weights import deferred_init, placement_of

A, B = "lora_a", "lora_b"


def adapter_weights(config: PaLMConfig, rank: int) -> dict[str, tuple[Weight, Weight]]:
    """A [rows, rank] and B [rank, columns] of each kernel, by the kernel's name. A starts N(0, 1/rows), B at zero."""
    pairs = {}
    for kernel in weights(config):
        if kernel.name.endswith(KERNELS):
            (rows, columns), (row_axis, column_axis) = kernel.shape, kernel.axes
            a_name, b_name, layer = f"{kernel.name}.{A}", f"{kernel.name}.{B}", kernel.layer
            a = Weight(a_name, (rows, rank), (row_axis, "one"), (FanIn(rows, rows),), fully_sharded=False, layer=layer)
            b = Weight(b_name, (rank, columns), ("one", column_axis), fully_sharded=False, layer=layer)
            pairs[kernel.name] = a, b
    return pairs


def adapter_shapes(config: PaLMConfig, rank: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every A and B: ``blocks.{i}.q_wi.lora_a`` [rows, rank], ``.lora_b`` [rank, columns], ..."""
    return {weight.name: weight.shape for pair in adapter_weights(config, rank).values() for weight in pair}


def adapt(palm: PaLM, rank: int, alpha: float = 16.0, seed: int = 0) -> None:
    """Adds A and B to every kernel of a network and freezes all other weights.

    The network's logits stay the same, because B is zero.

    Args:
        palm: a network that has not been called yet.
        rank: columns of A and rows of B.
        alpha: A B is multiplied by alpha / rank.
        seed: decides A, together with its name.
    """
    pairs = adapter_weights(palm.config, rank)
    for weight in palm.get_parameters():
        weight.requires_grad = False
    for _, owner in list(palm.cells_and_names()):
        for name, kernel in list(owner.name_cells().items()):
            if type(kernel) is Kernel:
                a, b = (initial_parameter(weight, seed) for weight in pairs[kernel.weight.name])
                setattr(owner, name, AdaptedKernel(kernel.weight, a, b, alpha / rank))


class AdaptedKernel(Kernel):
    """``W + scale * A B``."""

    def __init__(self, weight: Parameter, a: Parameter, b: Parameter, scale: float) -> None:
        super().__init__(weight)
        (rows, columns), self.scale = placement_of(weight).axes, scale
        self.a, self.b = a, b
        self.matmul = shard(ops.MatMul(), (rows, "one"), ("one", columns))
        self.times, self.add = shard(ops.Mul(), (rows, columns), ()), shard(ops.Add(), (rows, columns), (rows, columns))

    def construct(self) -> Tensor:
        return self.add(self.weight, self.times(self.matmul(self.a, self.b), self.scale))


def adapters_of(palm: PaLM) -> list[AdaptedKernel]:
    """The adapted kernels of a network; empty if it has no adapters."""
    return [cell for _, cell in palm.cells_and_names() if isinstance(cell, AdaptedKernel)]


def merged(w: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """``W + scale * A B`` of a kernel, or of some rows of W and the same rows of A: float32."""
    return w + np.float32(scale) * (a @ b)


def merge(palm: PaLM) -> PaLM:
    """A network without adapters that computes the same: each A B is added to its kernel."""
    weights = {weight.name: weight.asnumpy() for weight in palm.get_parameters()}
    return merged_palm(palm.config, weights, adapters_of(palm)[0].scale)


def merged_palm(config: PaLMConfig, weights: dict[str, np.ndarray], scale: float) -> PaLM:
    """A network from weights by name. A and B, named as in ``adapter_shapes``, are merged into their kernels."""
    with deferred_init():  # never drawn: every weight is set
        palm = PaLM(config)
    for weight in palm.get_parameters():
        values, name = weights[weight.name], weight.name
        if f"{name}.{A}" in weights:
            values = merged(values, weights[f"{name}.{A}"], weights[f"{name}.{B}"], scale)
        weight.set_data(Tensor(values))
    return palm

"""LoRA (arXiv 2106.09685) on PaLM's fused kernels: ``W + alpha/rank * A B`` for q_wi, kv and o_wo of every block.

A and B are trained and W is not. The sum is made before the kernel is used, so every product is the network's own,
and the merged kernel gives what the two gave apart.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.initial import draw, weight_axes, weight_shapes
from mindspore_palm.model.palm import PaLM
from mindspore_palm.parallel.axes import shard
from mindspore_palm.parallel.placement import Window
from mindspore_palm.parallel.weights import drawn_later, make_weight, placement_of

KERNELS = ("q_wi", "kv", "o_wo")
A, B = "lora_a", "lora_b"


def adapter_shapes(config: PaLMConfig, rank: int) -> dict[str, tuple[int, int]]:
    """Name and shape of every A and B: ``blocks.{i}.q_wi.lora_a`` [rows, rank], ``.lora_b`` [rank, columns], ..."""
    shapes = {}
    for name, shape in weight_shapes(config).items():
        if name.endswith(KERNELS):
            shapes |= {f"{name}.{A}": (shape[0], rank), f"{name}.{B}": (rank, shape[1])}
    return shapes


def adapt(palm: PaLM, rank: int, alpha: float = 16.0, seed: int = 0) -> None:
    """Gives every kernel of a network its A and B, and leaves these alone to be trained.

    It computes what it did before: A is drawn from N(0, 1/rows), and B is zero.

    Args:
        palm: a network that was not called yet.
        rank: columns of A and rows of B.
        alpha: rank times what A B is multiplied with.
        seed: decides A, together with its name.
    """
    shapes, axes = adapter_shapes(palm.config, rank), weight_axes(palm.config)
    for weight in palm.get_parameters():
        weight.requires_grad = False
    for i, block in enumerate(palm.blocks):
        block.lora = AdaptedKernels(f"blocks.{i}", axes, shapes, alpha / rank, seed)
        for part in block.lora.get_parameters():
            part.name = placement_of(part).name  # MS-25: the block has put its own name before it


class AdaptedKernels(nn.Cell):
    """A block's q_wi, kv and o_wo to the same, each with ``scale * A B`` added."""

    def __init__(
        self, block: str, axes: dict[str, tuple[str, ...]], shapes: dict[str, tuple[int, int]], scale: float, seed: int
    ) -> None:
        super().__init__(auto_prefix=False)
        self.scale = scale
        names = [f"{block}.{kernel}" for kernel in KERNELS]
        self.q_wi, self.kv, self.o_wo = (Adapted(name, axes[name], shapes, scale, seed) for name in names)

    def construct(self, q_wi: Parameter, kv: Parameter, o_wo: Parameter) -> tuple[Tensor, Tensor, Tensor]:
        return self.q_wi(q_wi), self.kv(kv), self.o_wo(o_wo)


class Adapted(nn.Cell):
    """``W + scale * A B``."""

    def __init__(
        self, name: str, axes: tuple[str, ...], shapes: dict[str, tuple[int, int]], scale: float, seed: int
    ) -> None:
        super().__init__(auto_prefix=False)
        a, b, (rows, columns) = f"{name}.{A}", f"{name}.{B}", axes
        self.a = make_weight(a, shapes[a], (rows, "one"), partial(_draw_a, seed, a, shapes[a]), fully_sharded=False)
        self.b = make_weight(b, shapes[b], ("one", columns), partial(_zero_b, shapes[b]), fully_sharded=False)
        self.matmul, self.add = shard(ops.MatMul(), (rows, "one"), ("one", columns)), shard(ops.Add(), axes, axes)
        self.times, self.scale = shard(ops.Mul(), axes, ()), scale

    def construct(self, w: Parameter) -> Tensor:
        return self.add(w, self.times(self.matmul(self.a, self.b), self.scale))


def merged(w: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """``W + scale * A B`` of a kernel, or of some of its rows and the same rows of A: float32."""
    return w + np.float32(scale) * (a @ b)


def merge(palm: PaLM) -> PaLM:
    """A network without adapters that computes what an adapted one does: every A B is in its kernel."""
    weights = {weight.name: weight.asnumpy() for weight in palm.get_parameters()}
    return merged_palm(palm.config, weights, palm.blocks[0].lora.scale)


def merged_palm(config: PaLMConfig, weights: dict[str, np.ndarray], scale: float) -> PaLM:
    """A network of weights and, by the names of ``adapter_shapes``, of A and B of its kernels."""
    with drawn_later():  # never: all of them are set
        palm = PaLM(config)
    for weight in palm.get_parameters():
        values, name = weights[weight.name], weight.name
        if f"{name}.{A}" in weights:
            values = merged(values, weights[f"{name}.{A}"], weights[f"{name}.{B}"], scale)
        weight.set_data(Tensor(values))
    return palm


def _draw_a(seed: int, name: str, shape: tuple[int, int], window: Window | None) -> np.ndarray:
    return draw(seed, name, shape, window) * np.float32(shape[0] ** -0.5)


def _zero_b(shape: tuple[int, int], window: Window | None) -> np.ndarray:
    return np.zeros(shape, np.float32)[window or slice(None)]

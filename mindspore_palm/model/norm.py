"""Root mean square norm (the code of PaLM; its paper says layer norm), and layer norm as an ablation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mindspore import Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.precision import ToFloat32
from mindspore_palm.parallel.axes import current_layout, shard
from mindspore_palm.parallel.placement import Window
from mindspore_palm.parallel.weights import make_weight


def make_norm(config: PaLMConfig, learned_scale: bool = True) -> nn.Cell:
    """PaLM's norm, or the ablation that the configuration asks for. Before PaLM's logits, the scale is left out."""
    return (RMSNorm if config.norm == "rms_norm" else LayerNorm)(config, learned_scale)


class RMSNorm(nn.Cell):
    """``x / sqrt(mean(x^2) + 1e-6) * (1 + scale)`` over the last axis of [T, D], to float32; scale starts at zero.

    Args:
        config: D, and the ablations: another epsilon, and a scale that is stored around one.
        learned_scale: False leaves the scale out.
    """

    def __init__(self, config: PaLMConfig, learned_scale: bool = True) -> None:
        super().__init__()
        rows, column, d_model = ("tokens", "embed"), ("tokens", "one"), config.d_model
        self.learned_scale, self.one_by_d, self.epsilon = learned_scale, 1.0 / d_model, config.norm_epsilon
        self.around_zero = config.norm_scale == "around_zero"
        self.to_float32 = ToFloat32(rows)
        if learned_scale:
            self.scale = make_weight("scale", (d_model,), ("embed",), _constant(config), fully_sharded=False)
        # MS-38, on one device x*x: the gradient of Square is slow on CPU. MS-05, on several, that of x*x is x*g + x*g,
        # and where x comes from an all-reduce (the embedding's), MindSpore 2.10 takes the sum for a weight decay and
        # rewrites it to something else (AdjustAllReduceMulAdd): a silently wrong gradient, which a parity test found.
        self.several = current_layout().devices > 1
        self.square = shard(ops.Square(), rows) if self.several else shard(ops.Mul(), rows, rows)
        self.sum = shard(ops.ReduceSum(keep_dims=True), rows)
        self.mean = shard(
            ops.Mul(), column, ()
        )  # MS-39, a sum times 1/D: the gradient of ReduceMean divides D numbers, not one
        self.add_epsilon = shard(ops.Add(), column, ())
        self.rsqrt = shard(ops.Rsqrt(), column)
        self.normalise = shard(ops.Mul(), rows, column)
        self.one_plus = shard(ops.Add(), ("embed",), ())
        self.stretch = shard(ops.Mul(), rows, ("embed",))

    def construct(self, x: Tensor) -> Tensor:
        x = self.to_float32(x)
        square = self.square(x) if self.several else self.square(x, x)
        mean_square = self.mean(self.sum(square, -1), self.one_by_d)
        y = self.normalise(x, self.rsqrt(self.add_epsilon(mean_square, self.epsilon)))
        if self.learned_scale:
            y = self.stretch(y, self.one_plus(self.scale, 1.0) if self.around_zero else self.scale)
        return y


class LayerNorm(RMSNorm):
    """The same after the mean is taken off: ``(x - mean(x)) / sqrt(variance(x) + epsilon) * (1 + scale)``, no bias."""

    def __init__(self, config: PaLMConfig, learned_scale: bool = True) -> None:
        super().__init__(config, learned_scale)
        self.minus = shard(ops.Sub(), ("tokens", "embed"), ("tokens", "one"))

    def construct(self, x: Tensor) -> Tensor:
        x = self.to_float32(x)
        return super().construct(self.minus(x, self.mean(self.sum(x, -1), self.one_by_d)))


def _constant(config: PaLMConfig) -> Callable[[Window | None], np.ndarray]:
    value = 0.0 if config.norm_scale == "around_zero" else 1.0

    def draw(window: Window | None) -> np.ndarray:
        return np.full(config.d_model, value, np.float32)[window or slice(None)]

    return draw

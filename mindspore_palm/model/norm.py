"""Root mean square norm, as in PaLM's code (its paper says layer norm), and layer norm as an ablation."""

from __future__ import annotations

from mindspore import Parameter, Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.precision import ToFloat32
from mindspore_palm.parallel.axes import shard
from mindspore_palm.parallel.cells import Square


def make_norm(config: PaLMConfig, scale: Parameter | None) -> nn.Cell:
    """PaLM's norm, or the ablation in the configuration, with a learned scale [D], or none if ``scale`` is None."""
    return (RMSNorm if config.norm == "rms_norm" else LayerNorm)(config, scale)


class RMSNorm(nn.Cell):
    """``x / sqrt(mean(x^2) + epsilon) * (1 + scale)`` over the last axis: [T, D] to float32 [T, D].

    Args:
        config: D, epsilon, and whether the scale is stored around zero or around one.
        scale: float32 [D]; None for a norm without one.
    """

    def __init__(self, config: PaLMConfig, scale: Parameter | None = None) -> None:
        super().__init__(auto_prefix=False)
        rows, column = ("tokens", "embed"), ("tokens", "one")
        self.epsilon = config.norm_epsilon
        self.to_float32, self.square, self.mean = ToFloat32(rows), Square(rows), RowMean(config.d_model)
        self.add_epsilon, self.rsqrt = shard(ops.Add(), column, ()), shard(ops.Rsqrt(), column)
        self.normalise = shard(ops.Mul(), rows, column)
        self.has_scale, self.around_zero = scale is not None, config.norm_scale == "around_zero"
        if scale is not None:
            self.scale = scale
        self.one_plus, self.times_scale = shard(ops.Add(), ("embed",), ()), shard(ops.Mul(), rows, ("embed",))

    def construct(self, x_TD: Tensor) -> Tensor:
        x_TD = self.to_float32(x_TD)
        mean_square_T1 = self.mean(self.square(x_TD))
        y_TD = self.normalise(x_TD, self.rsqrt(self.add_epsilon(mean_square_T1, self.epsilon)))
        if self.has_scale:
            y_TD = self.times_scale(y_TD, self.one_plus(self.scale, 1.0) if self.around_zero else self.scale)
        return y_TD


class LayerNorm(RMSNorm):
    """RMSNorm of ``x - mean(x)``, without a bias: ``(x - mean(x)) / sqrt(variance(x) + epsilon) * (1 + scale)``."""

    def __init__(self, config: PaLMConfig, scale: Parameter | None = None) -> None:
        super().__init__(config, scale)
        self.minus = shard(ops.Sub(), ("tokens", "embed"), ("tokens", "one"))

    def construct(self, x_TD: Tensor) -> Tensor:
        x_TD = self.to_float32(x_TD)
        return super().construct(self.minus(x_TD, self.mean(x_TD)))


class RowMean(nn.Cell):
    """Mean of each row: [T, D] to [T, 1]. MS-39: a sum times 1/D, because ReduceMean's gradient divides D elements."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.one_over_d = 1.0 / d_model
        self.sum = shard(ops.ReduceSum(keep_dims=True), ("tokens", "embed"))
        self.times = shard(ops.Mul(), ("tokens", "one"), ())

    def construct(self, x_TD: Tensor) -> Tensor:
        return self.times(self.sum(x_TD, -1), self.one_over_d)

"""Learning rate schedules."""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindspore_palm.config import OptimizerConfig


class Schedule(nn.Cell):
    """The learning rate of step k = 1, 2, ... as float32 []; ``construct`` takes k as float32 [].

    - palm: ``min(learning_rate, 1/sqrt(k))`` (section 5 of the paper: constant to k = 10,000 at 1e-2).
    - constant: a linear warm-up, then learning_rate.
    - cosine: a linear warm-up, then half a cosine down to final_fraction of learning_rate at the last step.
    """

    def __init__(self, config: OptimizerConfig, steps: int) -> None:
        super().__init__()
        self.schedule, self.peak, self.warmup = config.schedule, config.learning_rate, float(config.warmup_steps)
        self.final, self.decay_steps = config.final_fraction, float(max(1, steps - config.warmup_steps))
        self.minimum, self.maximum = ops.Minimum(), ops.Maximum()
        self.rsqrt, self.cos = ops.Rsqrt(), ops.Cos()

    def construct(self, k: Tensor) -> Tensor:
        if self.schedule == "palm":
            return self.minimum(self.rsqrt(k), self.peak_rate())
        rate = self.peak_rate()
        if self.schedule == "cosine":
            progress = self.minimum(self.maximum(k - self.warmup, 0.0) / self.decay_steps, 1.0)
            rate = rate * (self.final + (1.0 - self.final) * 0.5 * (1.0 + self.cos(progress * math.pi)))
        if self.warmup > 0:
            rate = rate * self.minimum(k / self.warmup, 1.0)
        return rate

    def peak_rate(self) -> Tensor:
        """The peak, float32 []: a constant of the graph."""
        return Tensor(self.peak, ms.float32)

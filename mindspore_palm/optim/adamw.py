"""AdamW (arXiv 1711.05101), as an alternative and for comparisons."""

from __future__ import annotations

from math import prod

import numpy as np
from mindspore import Parameter, Tensor, ops

from mindspore_palm.config import OptimizerConfig
from mindspore_palm.optim.optimizer import FLOAT, Optimizer, Shape
from mindspore_palm.optim.schedule import Schedule


class AdamW(Optimizer):
    """Adam with bias correction and decoupled weight decay: ``p *= 1 - lr*decay`` before the update.

    Norm scales are not decayed. Arguments and result are those of ``Optimizer``.
    """

    def __init__(self, parameters: list[Parameter], config: OptimizerConfig, schedule: Schedule) -> None:
        super().__init__(parameters, config, schedule)
        self.beta1, self.beta2, self.eps = config.adamw_beta1, config.adamw_beta2, config.adamw_eps
        self.m, self.v = self.zeros("m"), self.zeros("v")
        self.decay = config.adamw_weight_decay
        self.decays = tuple(self.decay if p.ndim > 1 else 0.0 for p in self.parameters)
        self.adam, self.mul, self.pow, self.sqrt = ops.Adam(), ops.Mul(), ops.Pow(), ops.Sqrt()
        self.square, self.add, self.sub, self.div = ops.Square(), ops.Add(), ops.Sub(), ops.Div()
        self.assign, self.betas = ops.Assign(), Tensor(np.array([self.beta1, self.beta2], np.float32))

    def fused_settings(self) -> tuple[float, ...]:
        return 0, self.beta1, self.beta2, self.eps, self.decay

    @staticmethod
    def moments(shape: Shape) -> dict[str, Shape]:
        return {"m": shape, "v": shape}

    @staticmethod
    def traffic(shape: Shape) -> int:
        """Reads g, m, v and p; writes m, v and p."""
        return 7 * FLOAT * prod(shape)

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        k = self.next_step()
        lr = self.schedule(k)
        power1, power2 = self.pow(self.betas[0], k), self.pow(self.betas[1], k)
        for i in range(len(self.decays)):
            p, m, v, g = self.parameters[i], self.m[i], self.v[i], gradients[i]
            if self.decays[i] > 0:  # MS-16, p is written once: two writes have no order if partitioned
                new_m = self.add(self.mul(m, self.beta1), self.mul(g, 1.0 - self.beta1))
                new_v = self.add(self.mul(v, self.beta2), self.mul(self.square(g), 1.0 - self.beta2))
                root = self.add(self.sqrt(self.mul(new_v, 1.0 / (1.0 - power2))), self.eps)
                u = self.div(self.mul(new_m, lr / (1.0 - power1)), root)
                self.assign(m, new_m)
                self.assign(v, new_v)
                self.assign(p, self.sub(self.mul(p, 1.0 - lr * self.decays[i]), u))
            else:
                eps = self.sqrt(1.0 - power2) * self.eps  # MS-29: ops.Adam adds it before v is corrected
                self.adam(p, m, v, power1, power2, lr, self.beta1, self.beta2, eps, g)
        return lr

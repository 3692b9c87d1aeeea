"""AdamW (arXiv 1711.05101), as an alternative and for comparisons."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindspore_palm.config import OptimizerConfig
from mindspore_palm.optim.schedule import Schedule
from mindspore_palm.parallel.weights import zeros_like


class AdamW(nn.Optimizer):
    """Adam with bias correction and decoupled weight decay: ``p *= 1 - lr*decay`` before the update.

    Norm scales are not decayed. Arguments and result are those of ``Adafactor``.
    """

    def __init__(self, parameters: list[Parameter], config: OptimizerConfig, schedule: Schedule) -> None:
        super().__init__(0.0, parameters)
        self.schedule = schedule
        self.beta1, self.beta2, self.eps = config.adamw_beta1, config.adamw_beta2, config.adamw_eps
        self.m, self.v = zeros_like(self.parameters, "m"), zeros_like(self.parameters, "v")
        self.decays = tuple(config.adamw_weight_decay if p.ndim > 1 else 0.0 for p in self.parameters)
        self.adam, self.mul, self.pow, self.sqrt = ops.Adam(), ops.Mul(), ops.Pow(), ops.Sqrt()
        self.square, self.add, self.sub, self.div = ops.Square(), ops.Add(), ops.Sub(), ops.Div()
        self.cast, self.reshape, self.assign = ops.Cast(), ops.Reshape(), ops.Assign()
        self.betas = Tensor(np.array([self.beta1, self.beta2], np.float32))

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        # MS-16, the result of the increment: in a partitioned graph, a separate read may come before or after it
        count = self.assignadd(self.global_step, self.global_step_increase_tensor)
        k = self.cast(self.reshape(count, ()), ms.float32)
        lr = self.schedule(k)
        power1, power2 = self.pow(self.betas[0], k), self.pow(self.betas[1], k)
        for i in range(len(self.decays)):
            p, m, v, g = self.parameters[i], self.m[i], self.v[i], gradients[i]
            if self.decays[i] > 0:  # p is written once: two writes have no order in a partitioned graph
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

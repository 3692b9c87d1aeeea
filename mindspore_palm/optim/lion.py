"""Lion (arXiv 2302.06675), which stores one moment and updates by a sign."""

from __future__ import annotations

from math import prod

from mindspore import Parameter, Tensor, ops

from mindspore_palm.config import OptimizerConfig
from mindspore_palm.optim.optimizer import FLOAT, Optimizer, Shape
from mindspore_palm.optim.schedule import Schedule


class Lion(Optimizer):
    """For every weight p with gradient g (algorithm 2 of the paper)::

        u = sign(beta1*m + (1-beta1)*g)
        m = beta2*m + (1-beta2)*g
        p = (1 - lr*decay)*p - lr*u

    Every entry moves by lr, so the paper recommends a rate 3 to 10 times smaller than AdamW's, and a decay as many
    times larger. Norm scales are not decayed. Arguments and result are those of ``Optimizer``.
    """

    def __init__(self, parameters: list[Parameter], config: OptimizerConfig, schedule: Schedule) -> None:
        super().__init__(parameters, config, schedule)
        self.beta1, self.beta2 = config.lion_beta1, config.lion_beta2
        self.decays = tuple(config.lion_weight_decay if p.ndim > 1 else 0.0 for p in self.parameters)
        self.m = self.zeros("m")
        self.map, self.partial = ops.HyperMap(), ops.Partial()  # MS-20
        self.mul, self.add, self.sub, self.sign = ops.Mul(), ops.Add(), ops.Sub(), ops.Sign()
        self.assign, self.depend = ops.Assign(), ops.Depend()

    @staticmethod
    def moments(shape: Shape) -> dict[str, Shape]:
        return {"m": shape}

    @staticmethod
    def traffic(shape: Shape) -> int:
        """Reads g, m and p; writes m and p."""
        return 5 * FLOAT * prod(shape)

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        lr = self.schedule(self.next_step())
        self.map(self.partial(self.update, lr), self.decays, gradients, self.parameters, self.m)
        return lr

    def update(self, lr: Tensor, decay: float, g: Tensor, p: Parameter, m: Parameter) -> bool:
        """Writes m and p of one weight."""
        u, new_m = self.sign(self.blend(m, g, self.beta1)), self.blend(m, g, self.beta2)
        new_p = self.sub(self.mul(p, 1.0 - lr * decay), self.mul(u, lr))
        self.assign(m, self.depend(new_m, u))  # MS-16: u is read from m before m is written
        self.assign(p, new_p)
        return True

    def blend(self, m: Tensor, g: Tensor, beta: float) -> Tensor:
        """``beta*m + (1-beta)*g``."""
        return self.add(self.mul(m, beta), self.mul(g, 1.0 - beta))

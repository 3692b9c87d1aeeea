"""Registry of the optimizers, by name."""

from __future__ import annotations

from mindspore import Parameter

from mindspore_palm.config import OptimizerConfig
from mindspore_palm.optim.adafactor import Adafactor
from mindspore_palm.optim.adamw import AdamW
from mindspore_palm.optim.lion import Lion
from mindspore_palm.optim.optimizer import Optimizer
from mindspore_palm.optim.schedule import Schedule

OPTIMIZERS: dict[str, type[Optimizer]] = {"adafactor": Adafactor, "adamw": AdamW, "lion": Lion}
"""By ``optimizer.name``."""


def optimizer_class(config: OptimizerConfig) -> type[Optimizer]:
    """The class that settings choose."""
    return OPTIMIZERS[config.name].variant(config)


def make_optimizer(parameters: list[Parameter], config: OptimizerConfig, steps: int) -> Optimizer:
    """The optimizer that settings choose, over the given weights; ``steps`` is where a cosine schedule ends."""
    return optimizer_class(config)(parameters, config, Schedule(config, steps))

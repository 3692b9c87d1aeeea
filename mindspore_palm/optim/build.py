"""Construction of an optimizer from settings."""

from __future__ import annotations

from mindspore import Parameter, nn

from mindspore_palm.config import OptimizerConfig
from mindspore_palm.optim.adafactor import Adafactor, FactoredAdafactor
from mindspore_palm.optim.adamw import AdamW
from mindspore_palm.optim.schedule import Schedule


def make_optimizer(parameters: list[Parameter], config: OptimizerConfig, steps: int) -> nn.Optimizer:
    """The optimizer that ``config`` names; ``steps`` is where a cosine schedule ends."""
    kind = AdamW if config.name == "adamw" else FactoredAdafactor if config.factored else Adafactor
    return kind(parameters, config, Schedule(config, steps))

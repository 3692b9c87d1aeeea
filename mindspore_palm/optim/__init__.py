"""Optimizers: Adafactor as PaLM used it, AdamW, Lion, their schedules, and the global norm of gradients."""

from mindspore_palm.optim.norm import GlobalNorm, clip_factor
from mindspore_palm.optim.optimizer import Optimizer
from mindspore_palm.optim.registry import OPTIMIZERS, make_optimizer, optimizer_class
from mindspore_palm.optim.schedule import Schedule

__all__ = ["OPTIMIZERS", "GlobalNorm", "Optimizer", "Schedule", "clip_factor", "make_optimizer", "optimizer_class"]

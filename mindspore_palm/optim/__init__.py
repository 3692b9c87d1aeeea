"""Optimizers: Adafactor as PaLM used it, AdamW, their schedules, and the global norm of gradients."""

from mindspore_palm.optim.adafactor import Adafactor
from mindspore_palm.optim.adamw import AdamW
from mindspore_palm.optim.build import make_optimizer
from mindspore_palm.optim.norm import GlobalNorm, clip_factor
from mindspore_palm.optim.schedule import Schedule

__all__ = ["Adafactor", "AdamW", "GlobalNorm", "Schedule", "clip_factor", "make_optimizer"]

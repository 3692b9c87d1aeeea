"""Builds the network and its training step from settings, for the current layout."""

from __future__ import annotations

from mindspore_palm.config import Settings
from mindspore_palm.model.loss import Loss
from mindspore_palm.model.palm import PaLM
from mindspore_palm.optim import make_optimizer
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.recompute import recompute
from mindspore_palm.parallel.stages import by_stage
from mindspore_palm.train.finetune import has_dropout, load_base_model
from mindspore_palm.train.step import TrainStep
from mindspore_palm.train.unrolled import UnrolledStep


def build_step(settings: Settings, accumulate: bool = True) -> tuple[PaLM, TrainStep | UnrolledStep]:
    """Builds the network and the step that trains it.

    Args:
        settings: all of them.
        accumulate: whether to accumulate gradients over micro-batches as set; False takes any batch at once.
    """
    palm = PaLM(settings.model, settings.train.seed)
    load_base_model(palm, settings)
    recompute(palm.blocks, settings.parallel.recompute)
    own, elsewhere = by_stage(palm.trainable_params())
    optimizer = make_optimizer(own, settings.optimizer, settings.train.steps)
    micro_batch = settings.train.micro_batch // current_layout().shards("batch") if accumulate else 0  # per worker
    loss = Loss(palm, settings.train.z_loss)
    if not current_layout().unrolled:
        return palm, TrainStep(loss, optimizer, settings.optimizer.clip_norm, micro_batch, has_dropout(settings))
    # the optimizer of other stages has their moments, which take no memory
    other = make_optimizer(elsewhere, settings.optimizer, settings.train.steps) if elsewhere else None
    return palm, UnrolledStep(loss, optimizer, settings.optimizer.clip_norm, micro_batch, other)

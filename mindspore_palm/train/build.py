"""From settings to a network and its compiled step, for the current layout."""

from __future__ import annotations

from mindspore_palm.config import Settings
from mindspore_palm.model.loss import Loss
from mindspore_palm.model.palm import PaLM
from mindspore_palm.optim import make_optimizer
from mindspore_palm.parallel.axes import current_layout
from mindspore_palm.parallel.recompute import recompute
from mindspore_palm.train.finetune import begin, drops
from mindspore_palm.train.step import TrainStep


def build_step(settings: Settings, one_pass: bool = False) -> tuple[PaLM, TrainStep]:
    """The network and the step that trains it.

    Args:
        settings: all of them.
        one_pass: leave gradient accumulation out; a step is then one pass of whatever it is given.
    """
    palm = PaLM(settings.model, settings.train.seed)
    begin(palm, settings)
    recompute(palm.blocks, settings.parallel.recompute)
    optimizer = make_optimizer(palm.trainable_params(), settings.optimizer, settings.train.steps)
    own_micro_batch = 0 if one_pass else settings.train.micro_batch // current_layout().shards("batch")
    loss = Loss(palm, settings.train.z_loss)
    return palm, TrainStep(loss, optimizer, settings.optimizer.clip_norm, own_micro_batch, drops(settings))

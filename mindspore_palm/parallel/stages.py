"""Stages of a pipeline: which layers each one computes, and Cells that know their stage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from mindspore import Parameter, Tensor, nn, ops

from mindspore_palm.config import PaLMConfig, Settings
from mindspore_palm.parallel.axes import ZERO_BUBBLE_V, current_layout
from mindspore_palm.parallel.context import this_rank
from mindspore_palm.parallel.sums import SumOverDevices
from mindspore_palm.parallel.weights import placement_of

AnyCell = TypeVar("AnyCell", bound=nn.Cell)


def stage_layers(settings: Settings) -> tuple[int, ...]:
    """Layers of each run, in order: as set, or balanced; empty without a pipeline."""
    parallel, model = settings.parallel, settings.model
    if parallel.stages == 1:
        return ()
    return tuple(parallel.stage_layers) or balanced(model.layers, parallel.runs, logits_in_layers(model))


def logits_in_layers(config: PaLMConfig) -> float:
    """Work of the logits and their loss, in layers: the ratio of the weights that a token is multiplied by."""
    kinds = config.parameters_by_kind()
    return config.layers * config.padded_vocab * config.d_model / (kinds["attention"] + kinds["mlp"])


def balanced(layers: int, runs: int, logits: float) -> tuple[int, ...]:
    """Layers of each run such that the slowest run has the least work, and the others differ by one at most.

    Every run has a layer, unless there are fewer layers than runs.

    Args:
        layers: of the network.
        runs: of the pipeline; two or more.
        logits: work of the last run after its layers, in layers. The lookup of the first one is no work.
    """

    def slowest(last: int) -> float:
        """Work of the slowest run, in layers, if the last one has ``last`` layers."""
        return max(last + logits, -(-(layers - last) // (runs - 1)))

    last = min(range(1, max(1, layers - runs + 1) + 1), key=slowest)
    most, more = divmod(layers - last, runs - 1)
    return (*(most + (run < more) for run in range(runs - 1)), last)


def by_stage(weights: Iterable[Parameter]) -> tuple[list[Parameter], list[Parameter]]:
    """The weights that the stage of this rank holds, and those of other stages."""
    weights, rank = list(weights), this_rank()
    return (
        [weight for weight in weights if placement_of(weight).holds(rank)],
        [weight for weight in weights if not placement_of(weight).holds(rank)],
    )


def on_stage_of(layer: int, cell: AnyCell) -> AnyCell:
    """Places a Cell on the stage of a layer, and returns it. Without a pipeline, does nothing.

    MindSpore finds the stages of all other ops from those of the placed Cells around them. The lookup, the final norm
    and the loss need one of their own: else it "can not find the end node of pipeline".
    """
    layout = current_layout()
    if layout.mesh.stages > 1:
        cell.pipeline_stage = layout.stage(layer)
        if layout.schedule == ZERO_BUBBLE_V:
            cell.pipeline_segment = layout.run(layer) // layout.mesh.stages
    return cell


class FromLastStage(nn.Cell):
    """The value that the stage of the last layer has, on all devices: float32 of any shape to the same.

    The identity without a pipeline, where all devices have it.
    """

    def __init__(self) -> None:
        super().__init__()
        layout = current_layout()
        self.several = layout.mesh.stages > 1
        self.is_source = this_rank() == layout.stage(sum(layout.stage_layers)) * layout.mesh.stage_devices
        self.over_devices, self.zeros = SumOverDevices(), ops.ZerosLike()

    def construct(self, x: Tensor) -> Tensor:
        if not self.several:
            return x
        return self.over_devices(x if self.is_source else self.zeros(x))

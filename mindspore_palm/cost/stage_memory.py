"""Memory of the devices of a pipeline, by stage: their own layers, and the micro-batches that they hold.

The first stages hold activations of the most micro-batches. The embedding is on the first and on the last stage, and
the logits are on the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod

from mindspore_palm.cost.activations import FLOAT, Activations
from mindspore_palm.cost.workload import Workload, gathered_size
from mindspore_palm.optim import optimizer_class
from mindspore_palm.parallel.placement import Placement


class StageMemory:
    """The formulas. Of a device, ``stages`` are the numbers of its stages, counted from the embedding."""

    def __init__(self, work: Workload, fused: bool, fused_attention: bool | None) -> None:
        self.work, self.fused = work, fused
        self.activations = Activations(
            work.model,
            work.layout,
            work.tokens,
            work.length,
            work.recompute,
            fused,
            fused_attention,
            work.sequence_parallel,
        )
        self.optimizer = optimizer_class(work.optimizer)

    def by_kind(self, stages: Sequence[int], held: float) -> dict[str, int]:
        """Bytes on a device, by kind.

        Args:
            stages: of the device.
            held: micro-batches whose activations it holds at once, as parts of one that visits all its stages.
        """
        layers, ends = sum(self._stage_layers[stage] for stage in stages), 0 in stages or self._last in stages
        kinds = {kind: layers * block + ends * table for kind, (block, table) in self._per_weight.items()}
        kinds["activations"] = held * layers * self._saved
        kinds["temporaries"] = max(self._backward, layers * self._update, self._loss if self._last in stages else 0.0)
        return {kind: int(size) for kind, size in kinds.items() if size}

    @cached_property
    def _per_weight(self) -> dict[str, tuple[float, float]]:
        """Bytes of the weights of a block, and of the embedding."""
        sizes = {
            "weights": self._weights,
            "gradients": self._gradients,
            "optimizer state": self._moments,
            "gathered weights": self._gathered,
        }
        blocks, table = self.work.block_weights, self.work.embedding
        return {kind: (sum(map(size, blocks)), size(table)) for kind, size in sizes.items()}

    @cached_property
    def _saved(self) -> float:
        return self.activations.saved()

    @cached_property
    def _update(self) -> float:
        """Temporaries of the update of a block, as the optimizer declares them."""
        return sum(self.optimizer.temporaries(weight.shard_shape) for weight in self.work.block_weights)

    @cached_property
    def _backward(self) -> float:
        """Activations that a block's backward pass recomputes, and its gathered weights if they do not stay so."""
        one, again = self.activations, self.work.recompute
        recomputed = {"none": 0.0, "attention": one.scores(), "block": 1.5 * one.layer() + 2 * one.scores()}[again]
        if self.work.gather_once:
            return recomputed
        return recomputed + 2 * one.item * sum(gathered_size(w) for w in self.work.block_weights if w.data_shards > 1)

    @cached_property
    def _loss(self) -> float:
        """Logits T*V/m in float32: with those of their softmax, gradient and cast, 4 tensors; fused, 1.5."""
        vocab = self.work.model.padded_vocab / self.work.layout.shards("vocab")
        table = self._gradient_of_gathered(self.work.embedding)
        return (1.5 if self.fused else 4) * FLOAT * self.work.tokens * vocab + table

    @cached_property
    def _stage_layers(self) -> tuple[int, ...]:
        return self.work.stage_layers

    @cached_property
    def _last(self) -> int:
        return len(self._stage_layers) - 1

    def _weights(self, weight: Placement) -> float:
        """4 bytes per parameter of the shard."""
        return FLOAT * prod(weight.shard_shape)

    def _moments(self, weight: Placement) -> float:
        """As the optimizer declares them."""
        return self.optimizer.state_bytes(weight.shard_shape)

    def _gradients(self, weight: Placement) -> float:
        """4 bytes per parameter, accumulated over micro-batches: of a weight that stays gathered, or of the shard."""
        return FLOAT * (gathered_size(weight) if self.work.gather_once else prod(weight.shard_shape))

    def _gathered(self, weight: Placement) -> float:
        """Bytes that stay gathered: with ``gather_once`` of all, else of blocks, unless they are recomputed."""
        if weight.data_shards == 1:
            return 0.0
        stays = self.work.gather_once or (self.work.recompute != "block" and weight.name != "embedding")
        return self.activations.item * gathered_size(weight) if stays else 0.0

    def _gradient_of_gathered(self, weight: Placement) -> float:
        """Gathered weight and gradient in float32, if they are gathered for each micro-batch."""
        return 0.0 if self.work.gather_once or weight.data_shards == 1 else 2 * FLOAT * gathered_size(weight)

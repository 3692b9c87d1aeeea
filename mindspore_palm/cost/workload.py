"""Work of one device in a training step: matmuls, memory traffic and collectives, before any machine is named.

Shape letters: T tokens of a micro-batch per device, S sequence length, D d_model, H heads, K head_dim, F d_ff, V padded
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

from mindspore_palm.config import OptimizerConfig, PaLMConfig, Settings
from mindspore_palm.model.weights import POSITIONS, placements
from mindspore_palm.optim import optimizer_class
from mindspore_palm.palm_config import Recompute
from mindspore_palm.parallel.axes import PER_STEP, PODS_PER_STEP, Layout
from mindspore_palm.parallel.check import layout_of
from mindspore_palm.parallel.placement import Placement

HALF, FLOAT = 2, 4  # bytes: matmuls are in 16 bits, and what needs precision is in float32


@dataclass(frozen=True)
class Matmul:
    """``count`` equal matmuls [m, k] x [k, n] on a device."""

    name: str
    m: int
    k: int
    n: int
    count: int = 1
    weight: bool = True
    """Whether one operand is a weight; in attention, both are activations."""

    @property
    def flops(self) -> int:
        return 2 * self.m * self.k * self.n * self.count

    def backward(self) -> tuple[Matmul, Matmul]:
        """The matmuls of its backward pass: the gradients of the left and of the right operand."""
        return (
            Matmul(self.name, self.m, self.n, self.k, self.count, self.weight),
            Matmul(self.name, self.k, self.m, self.n, self.count, self.weight),
        )


@dataclass(frozen=True)
class Workload:
    """A training step on a layout.

    With a pipeline, ``layout`` is the mesh of one stage. PaLM has none; the systems that the paper compares it with do.
    """

    model: PaLMConfig
    layout: Layout
    length: int
    """Tokens per sequence, S."""
    batch: int
    """Sequences per step."""
    micro_batch: int
    """Sequences per micro-batch, over all devices."""
    pipeline: int = 1
    """Devices of the pipeline, one after the other."""
    chunks: int = 1
    """Stages of each of them: with several, the bubble is smaller, and more is sent."""
    schedule: str = "1f1b"
    """Order in which they compute, by its name in ``plan/schedules.py``."""
    gather_once: bool = True
    """Pipelines: fully sharded weights stay gathered during a step. Otherwise, each micro-batch gathers them."""
    sequence_parallel: bool = False
    """Norms and residuals are sharded over model, by tokens (arXiv 2205.05198). An all-reduce becomes a reduce-scatter
    and an all-gather, which send the same bytes."""
    sharded_sends: bool = False
    """Pipelines: each model rank sends its shard of the activations to the next stage, which gathers them."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    item: int = HALF
    """Bytes of a number in activations and matmuls; a CPU is planned in float32, and all others in 16 bits."""

    @classmethod
    def of(cls, settings: Settings, target: str = "GPU") -> Workload:
        """The step of a run at its last batch size."""
        batch = settings.train.batch_ramp()[-1][1]
        micro_batch = settings.train.micro_batch_of(batch)
        layout, length = layout_of(settings, target, planned=True), settings.data.seq_len
        layout = replace(layout, mesh=replace(layout.mesh, stages=1), stage_layers=())
        item = FLOAT if target == "CPU" else HALF
        return cls(settings.model, layout, length, batch, micro_batch, optimizer=settings.optimizer, item=item)

    @property
    def devices(self) -> int:
        """Devices of all stages."""
        return self.layout.devices * self.pipeline

    @property
    def micro_batches(self) -> int:
        """Micro-batches per step."""
        return self.batch // self.micro_batch

    @property
    def sequences(self) -> int:
        """Sequences of a micro-batch per device."""
        return self.micro_batch // self.layout.shards("batch")

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch per device, T."""
        return self.sequences * self.length

    @property
    def tokens_per_step(self) -> int:
        """Tokens per step, over all devices."""
        return self.batch * self.length

    @property
    def layers(self) -> int:
        """Layers per device."""
        return -(-self.model.layers // self.pipeline)

    @property
    def stage_layers(self) -> tuple[int, ...]:
        """Layers of each stage, first to last: as equal as can be, and fewer at the end, where the logits are."""
        stages = self.pipeline * self.chunks
        least, more = divmod(self.model.layers, stages)
        return tuple(least + (stage < more) for stage in range(stages))

    @property
    def recompute(self) -> Recompute:
        """Activations that the backward pass recomputes: none, attention or block."""
        return self.layout.recompute

    def block_matmuls(self) -> list[Matmul]:
        """The matmuls of a block's forward pass."""
        model, shards = self.model, self.layout.shards("heads")
        heads, width = model.heads // shards, model.d_ff // shards
        d, k, rows = model.d_model, model.head_dim, self.tokens
        one_head = model.kv_heads == 1
        queries = self.length * heads if one_head else self.length
        pairs = self.sequences if one_head else self.sequences * heads
        return [
            Matmul("q_wi", rows, d, heads * k + model.mlp_inputs * width),
            Matmul("kv", rows, d, 2 * k if one_head else 2 * heads * k),
            Matmul("scores", queries, k, self.length, pairs, weight=False),
            Matmul("mix", queries, self.length, k, pairs, weight=False),
            Matmul("o_wo", rows, heads * k + width, d),
        ]

    def logits_matmul(self) -> Matmul:
        """The unembedding matmul."""
        return Matmul("logits", self.tokens, self.model.d_model, self.model.padded_vocab // self.layout.shards("vocab"))

    def recomputed(self) -> list[Matmul]:
        """The matmuls of a block that the backward pass recomputes.

        attention skips ``mix``, whose result is saved as the input of ``o_wo``. block skips ``o_wo`` of a parallel
        block, whose result is the saved input of the next block. The graphs of MindSpore and of XLA do the same. A
        serial block needs ``o_wo`` for its second half, and the systems that had such blocks recomputed all of them.
        """
        kept = ("o_wo",) if self.model.block == "parallel" else ()
        again = {"none": (), "attention": ("scores",), "block": ("q_wi", "kv", "scores", "mix", "o_wo")}
        return [p for p in self.block_matmuls() if p.name in again[self.recompute] and p.name not in kept]

    def block_traffic(self, fused_attention: bool) -> int:
        """Bytes that a block's forward pass reads and writes outside of matmuls.

        Each op reads and writes its activations in full, in the compute dtype. A norm reads its input twice and writes
        once. RoPE reads and writes q. Softmax reads the scores for the maximum, reads and writes the exponentials, and
        reads and writes the weights. SwiGLU reads gate and up and writes one result. The residual add reads two and
        writes one.
        """
        model, shards = self.model, self.layout.shards("heads")
        norms = 1 if model.block == "parallel" else 2
        residual = (3 * norms + 3 * norms) * model.d_model // (shards if self.sequence_parallel else 1)
        rotation = 2 * model.heads * model.head_dim // shards
        softmax = 0 if fused_attention else 5 * model.heads * self.length // shards
        gate = (model.mlp_inputs + 1) * model.d_ff // shards
        return self.item * self.tokens * (residual + rotation + softmax + gate)

    def loss_traffic(self) -> int:
        """Bytes that the loss and its gradient read and write: the float32 logits six times."""
        return 6 * FLOAT * self.tokens * self.model.padded_vocab // self.layout.shards("vocab")

    @property
    def all_reduces(self) -> int:
        """All-reduces over model in a block's forward pass: one, or two if attention and mlp are serial."""
        return 1 if self.model.block == "parallel" else 2

    @property
    def activation_bytes(self) -> int:
        """Bytes of an activation [T, D]."""
        return self.item * self.tokens * self.model.d_model

    @cached_property
    def block_weights(self) -> list[Placement]:
        """Placements of the weights of one block."""
        return [p for p in self._weights_of_one_layer if p.name not in ("embedding", POSITIONS)]

    @cached_property
    def embedding(self) -> Placement:
        """Placement of the embedding."""
        return next(p for p in self._weights_of_one_layer if p.name == "embedding")

    @cached_property
    def _weights_of_one_layer(self) -> list[Placement]:
        return layer_placements(self.model, self.layout)

    def device_weights(self) -> list[tuple[Placement, int]]:
        """Each distinct weight of a device, and how many of it there are."""
        positions = [(p, 1) for p in self._weights_of_one_layer if p.name == POSITIONS]
        return [(self.embedding, 1), *positions, *((weight, self.layers) for weight in self.block_weights)]

    @property
    def device_parameters(self) -> int:
        """Parameters in the shards of a device."""
        return sum(count * prod(weight.shard_shape) for weight, count in self.device_weights())

    @property
    def optimizer_traffic(self) -> int:
        """Bytes that the update of a step reads and writes, as the optimizer declares them."""
        optimizer = optimizer_class(self.optimizer)
        return sum(count * optimizer.traffic(weight.shard_shape) for weight, count in self.device_weights())

    @property
    def once_a_step(self) -> bool:
        """Whether weights are gathered once a step, and full gradients scattered once."""
        return self.gather_once if self.pipeline > 1 else self.layout.reduce_gradients == PER_STEP

    @property
    def gradient_reductions(self) -> int:
        """All-reduces of gradients per step over the axes that do not shard weights: one, or one per micro-batch."""
        return 1 if self.pipeline > 1 or self.layout.unrolled else self.micro_batches

    @property
    def weight_gathers(self) -> int:
        """All-gathers per step of a fully sharded weight.

        One for the forward pass of each micro-batch, and one for its backward pass if blocks are recomputed. One in all
        if a step keeps it: those that reduce gradients between pods once and recompute nothing do so, too (level2).
        """
        kept = self.layout.reduce_gradients == PODS_PER_STEP and self.recompute != "block"
        if self.once_a_step or (self.pipeline == 1 and kept):
            return 1
        return self.micro_batches * (2 if self.recompute == "block" else 1)

    @property
    def gradient_scatters(self) -> int:
        """Reduce-scatters per step of the gradient of a fully sharded weight."""
        return 1 if self.once_a_step else self.micro_batches


def layer_placements(model: PaLMConfig, layout: Layout) -> list[Placement]:
    """Placements of the embedding and of the weights of one block."""
    return placements(model.model_copy(update={"layers": 1}), layout)


def gathered_size(weight: Placement) -> int:
    """Parameters of a weight that a device computes with: its shard by the table of axes, gathered over data."""
    return prod(weight.shard_shape) * weight.data_shards

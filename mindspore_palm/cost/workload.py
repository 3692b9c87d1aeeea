"""What one training step asks of one device: tokens, products, traffic and exchanges, before any machine is named.

Shape letters: T tokens of a pass on a device, S length, D d_model, H heads, K head_dim, F d_ff, V padded vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from mindspore_palm.config import PaLMConfig, Settings
from mindspore_palm.model.initial import placements
from mindspore_palm.parallel.axes import Layout
from mindspore_palm.parallel.check import layout_of
from mindspore_palm.parallel.placement import Placement

HALF, FLOAT = 2, 4  # bytes of a number in products, and where precision is wanted


@dataclass(frozen=True)
class Product:
    """Matrix products [m, k] x [k, n] of a forward pass on a device, ``count`` of them alike."""

    name: str
    m: int
    k: int
    n: int
    count: int = 1
    weight: bool = True
    """Whether one factor is a weight; both are activations in attention."""

    @property
    def flops(self) -> int:
        return 2 * self.m * self.k * self.n * self.count

    def backward(self) -> tuple[Product, Product]:
        """The products of its backward pass: towards the left factor, and towards the right one."""
        return (
            Product(self.name, self.m, self.n, self.k, self.count, self.weight),
            Product(self.name, self.k, self.m, self.n, self.count, self.weight),
        )


@dataclass(frozen=True)
class Workload:
    """A training step on a layout.

    ``pipeline`` cuts the layers into stages, as the systems did with which the article compares PaLM; PaLM itself, and
    this package, have none. A stage may hold several pieces of the network, ``turns``, between which it alternates:
    devices then wait less for the first pass, and send more.
    """

    model: PaLMConfig
    layout: Layout
    length: int
    """Tokens of a sequence, S."""
    batch: int
    """Sequences of a step."""
    micro_batch: int
    """Sequences of a forward pass, over all devices."""
    pipeline: int = 1
    turns: int = 1

    @classmethod
    def of(cls, settings: Settings, target: str = "GPU") -> Workload:
        """The step of a run, at its last batch size."""
        batch = settings.train.batch_ramp()[-1][1]
        micro_batch = settings.train.micro_batch_of(batch)
        return cls(settings.model, layout_of(settings, target), settings.data.seq_len, batch, micro_batch)

    @property
    def devices(self) -> int:
        """Devices of all stages."""
        return self.layout.devices * self.pipeline

    @property
    def passes(self) -> int:
        """Forward passes of a step."""
        return self.batch // self.micro_batch

    @property
    def sequences(self) -> int:
        """Sequences of a pass on a device."""
        return self.micro_batch // self.layout.shards("batch")

    @property
    def tokens(self) -> int:
        """Tokens of a pass on a device, T."""
        return self.sequences * self.length

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step on all devices."""
        return self.batch * self.length

    @property
    def layers(self) -> int:
        """Layers of a device."""
        return -(-self.model.layers // self.pipeline)

    @property
    def recompute(self) -> str:
        """What the backward pass computes again."""
        return self.layout.recompute

    def block_products(self) -> list[Product]:
        """The products of a block's forward pass."""
        model, cut = self.model, self.layout.shards("heads")
        heads, width = model.heads // cut, model.d_ff // cut
        d, k, rows = model.d_model, model.head_dim, self.tokens
        one_head = model.kv_heads == 1
        queries = self.length * heads if one_head else self.length
        pairs = self.sequences if one_head else self.sequences * heads
        return [
            Product("q_wi", rows, d, heads * k + model.mlp_inputs * width),
            Product("kv", rows, d, 2 * k if one_head else 2 * heads * k),
            Product("scores", queries, k, self.length, pairs, weight=False),
            Product("mix", queries, self.length, k, pairs, weight=False),
            Product("o_wo", rows, heads * k + width, d),
        ]

    def logits_product(self) -> Product:
        """The product with the embedding at the end."""
        return Product(
            "logits", self.tokens, self.model.d_model, self.model.padded_vocab // self.layout.shards("vocab")
        )

    def recomputed(self) -> list[Product]:
        """The products of a block that the backward pass does again.

        attention leaves out ``mix``, whose result is kept as the input of ``o_wo``; block leaves out ``o_wo`` of a
        parallel block, whose result is the next block's kept input. So do the graphs of MindSpore and of XLA. A serial
        block needs it for what follows, and the systems that had such blocks did all of it again.
        """
        kept = ("o_wo",) if self.model.block == "parallel" else ()
        again = {"none": (), "attention": ("scores",), "block": ("q_wi", "kv", "scores", "mix", "o_wo")}
        return [p for p in self.block_products() if p.name in again[self.recompute] and p.name not in kept]

    def block_traffic(self, fused_attention: bool) -> int:
        """Bytes that a block's forward pass moves outside of products.

        Counted as reads and writes of whole activations in 16 bits, each op by itself: a norm reads its input twice and
        writes once; RoPE reads and writes q; softmax reads scores for the maximum, reads and writes exponentials, reads
        and writes weights; SwiGLU reads gate and up and writes their product; the residual sum reads two and writes
        one.
        """
        model, cut = self.model, self.layout.shards("heads")
        norms = 1 if model.block == "parallel" else 2
        residual = (3 * norms + 3 * norms) * model.d_model
        rotation = 2 * model.heads * model.head_dim // cut
        softmax = 0 if fused_attention else 5 * model.heads * self.length // cut
        gate = (model.mlp_inputs + 1) * model.d_ff // cut
        return HALF * self.tokens * (residual + rotation + softmax + gate)

    def loss_traffic(self) -> int:
        """Bytes that loss and its gradient move for the logits: six times all of them, in float32."""
        return 6 * FLOAT * self.tokens * self.model.padded_vocab // self.layout.shards("vocab")

    @property
    def all_reduces(self) -> int:
        """Sums of an activation over model in a block's forward pass: one, or two if attention and mlp are serial."""
        return 1 if self.model.block == "parallel" else 2

    @property
    def activation_bytes(self) -> int:
        """Bytes of an activation [T, D]."""
        return HALF * self.tokens * self.model.d_model

    @cached_property
    def block_weights(self) -> list[Placement]:
        """Where the weights of one block lie."""
        return [p for p in self._weights_of_one_layer if p.name != "embedding"]

    @cached_property
    def embedding(self) -> Placement:
        """Where the embedding lies."""
        return next(p for p in self._weights_of_one_layer if p.name == "embedding")

    @cached_property
    def _weights_of_one_layer(self) -> list[Placement]:
        found = placements(self.model.model_copy(update={"layers": 1}), self.layout)
        if self.model.kv_heads == 1:
            return found
        return [replace(p, axes=("embed", "heads")) if p.name.endswith("kv") else p for p in found]  # cut, as heads are

    def weights_of_device(self) -> list[tuple[Placement, int]]:
        """Every kind of weight that a device holds, and how many of them."""
        return [(self.embedding, 1), *((weight, self.layers) for weight in self.block_weights)]

    @property
    def numbers_of_device(self) -> int:
        """Numbers of all weights that a device holds, in slices."""
        return sum(count * prod(weight.slice_shape) for weight, count in self.weights_of_device())

    @property
    def gradient_sums(self) -> int:
        """How often gradients are summed in a step: after each pass, as MindSpore does; under a pipeline once."""
        return self.passes if self.pipeline == 1 else 1


def gathered_numbers(weight: Placement) -> int:
    """Numbers of a weight that a device works with: its piece by the table of axes, all data slices gathered."""
    return prod(weight.slice_shape) * weight.data_slices

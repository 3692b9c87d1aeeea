"""Activations that a layer saves for its backward pass, in bytes per micro-batch on one device.

Letters: T tokens of a micro-batch per device, S sequence length, D d_model, H heads, K head_dim, F d_ff, m model ranks,
c bytes of the compute dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

from mindspore_palm.config import PaLMConfig
from mindspore_palm.devices import DEVICES
from mindspore_palm.palm_config import Recompute
from mindspore_palm.parallel.axes import Layout

FLOAT, HALF = 4, 2  # bytes


@dataclass(frozen=True)
class Activations:
    """The formulas, for one layer."""

    model: PaLMConfig
    layout: Layout
    tokens: int
    length: int
    recompute: Recompute
    fused: bool = False
    """Whether the compiler recomputes elementwise ops where they are used, as XLA does."""
    fused_attention: bool | None = None
    """Whether attention keeps its scores out of memory; None for what the layout's target does."""
    sequence_parallel: bool = False
    """Whether norms and residuals are sharded over model."""
    in_cpp: bool = False
    """Whether a block is one C++ function, as on one CPU."""

    @property
    def item(self) -> int:
        """Bytes of the compute dtype, c."""
        return FLOAT if self.layout.compute_dtype == "float32" else HALF

    @property
    def model_ranks(self) -> int:
        """Model ranks, m."""
        return self.layout.shards("heads")

    @property
    def holds_scores(self) -> bool:
        """Whether attention scores are in memory."""
        if self.in_cpp:
            return False
        if self.fused_attention is not None:
            return not self.fused_attention
        fuses = DEVICES[self.layout.target].fuses_attention(self.layout.compute_dtype, self.model.head_dim)
        return not (fuses and self.model.attention == "multi_query" and not self.model.alibi_heads)

    def saved(self) -> float:
        """Bytes that a layer saves.

        recompute=block: T*D*c, sharded over m if m divides D. attention: those of the layer except scores. none: all of
        them.
        """
        if self.recompute == "block":
            shards = self.model_ranks if self.model.d_model % self.model_ranks == 0 else 1
            return self.item * self.tokens * self.model.d_model / shards
        return self.layer() + (self.scores() if self.recompute == "none" else 0)

    def layer(self) -> float:
        """Activations of a layer, without scores.

        fused: T*c*(D/m + 2K + (2*H*K + 6F)/m) + 12*T*D/m, as XLA stacks them: the residual, k and v, q, the input of
        o_wo, and five tensors of gate and up; three float32 tensors of the norm. Not fused: T*c*(4D + (8*H*K + 6F)/m),
        and 4*T*D more if norms compute in another dtype; 4D and 4*T*D are sharded over m with sequence parallelism.

        Serial blocks: T*c*(4D + (4*H*K + 2F)/m), the inputs of two norms and of the matmuls after them; q, k, v, the
        input of the output projection, and the inputs of gelu and of the matmul after it. These are the terms of arXiv
        2205.05198, equations 1 to 4, without its dropout.

        In C++: 4*T*(2D + 2K + 2*H*K + 3F + H + 1), what ``BlockForward`` writes: the residual, the norm and its factor,
        k and v, q with gate and up, the input of o_wo, and log(Z) of each head.
        """
        model, m = self.model, self.model_ranks
        attention, mlp = model.heads * model.head_dim, model.d_ff
        if self.in_cpp:
            return FLOAT * self.tokens * (2 * model.d_model + self.rows() + model.heads + 1)
        width = model.d_model / (m if self.sequence_parallel else 1)
        if model.block == "serial":
            return self.tokens * self.item * (4 * width + (4 * attention + 2 * mlp) / m)
        if self.fused:
            row = model.d_model / m + 2 * model.head_dim + (2 * attention + 6 * mlp) / m
            return self.tokens * (self.item * row + 3 * FLOAT * model.d_model / m)
        row = 4 * width + (8 * attention + 6 * mlp) / m
        cast = FLOAT * width if self.item != FLOAT else 0
        return self.tokens * (self.item * row + cast)

    def rows(self) -> int:
        """Columns of a token's projections in C++: k and v; q, gate and up; the input of o_wo."""
        model = self.model
        return 2 * model.head_dim + 2 * model.heads * model.head_dim + 3 * model.d_ff

    def buffers(self) -> float:
        """Bytes that C++ keeps from pass to pass, once for all layers; zero if blocks are not in C++.

        The packed kernels of a layer; gradients of its projections, 4*T*(2K + 2*H*K + 3F); and packed keys and values
        with their gradients by head, 4*T*(4 + 2H)*K.
        """
        if not self.in_cpp:
            return 0.0
        model = self.model
        kernels = model.d_model * self.rows()  # of the same columns
        keys = self.tokens * (4 + 2 * model.heads) * model.head_dim
        return FLOAT * (kernels + self.tokens * self.rows() + keys)

    def scores(self) -> float:
        """Attention scores of a layer: T*S*H/m elements.

        fused: in float32 and in the compute dtype. Not fused: three float32 tensors of 3/4 of the elements, as queries
        are processed in two halves. Serial blocks: in the compute dtype. Zero with fused attention, as on Ascend.
        """
        if not self.holds_scores:
            return 0.0
        elements = self.tokens * self.length * self.model.heads / self.model_ranks
        if self.model.block == "serial":
            return elements * self.item
        return elements * (FLOAT + self.item) if self.fused else elements * 3 * FLOAT * 3 / 4

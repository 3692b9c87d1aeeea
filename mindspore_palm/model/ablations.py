"""The standard Transformer's parts in PaLM's block, for comparison: serial block, multi-head attention, other mlps.

Nothing of this is on PaLM's own path. Weight names and layouts stay those of the fused kernels; a serial block has a
second norm, ``blocks.{i}.mlp_norm.scale``, and multi-head attention a ``kv`` of [D, 2*H*K], all keys before all values.
"""

from __future__ import annotations

from mindspore import Parameter, Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.attention import MultiQueryAttention, Softmax, causal_mask
from mindspore_palm.model.block import Block, SwiGLU
from mindspore_palm.model.dropout import Dropout
from mindspore_palm.model.norm import make_norm
from mindspore_palm.model.projection import sizes_in, sizes_out
from mindspore_palm.model.rope import Rope
from mindspore_palm.parallel.axes import shard


def make_block(config: PaLMConfig, weights: dict[str, Parameter], attention: nn.Cell | None = None) -> nn.Cell:
    """PaLM's block, or the ablation that the configuration asks for.

    Args:
        config: the sizes and switches.
        weights: the block's Parameters.
        attention: another one than the configuration's over whole sequences.
    """
    if attention is None:
        attention = (MultiQueryAttention if config.attention == "multi_query" else MultiHeadAttention)(config)
    block = Block if config.parallel and config.mlp == "swiglu" else AblatedBlock
    return block(config, weights, attention)


class MultiHeadAttention(nn.Cell):
    """Every query head has its own key and value: q, k and v [T, H*K] to [T, H*K]."""

    query_axis = 2  # of scores and mask

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        by_position, by_head = ("batch", "length", "heads", "per_head"), ("batch", "heads", "length", "per_head")
        scores = ("batch", "heads", "length", "context")
        self.rope_q = Rope("heads", config.head_dim**-0.5, config.xpos_base)
        self.rope_k = Rope("heads", xpos_base=-config.xpos_base)
        self.heads_first, self.heads_last = shard(ops.Transpose(), by_position), shard(ops.Transpose(), by_head)
        self.scores = shard(ops.BatchMatMul(transpose_b=True), by_head, by_head)
        self.mask = shard(ops.Add(), scores, ("one", "one", "length", "context"))
        self.mix = shard(ops.BatchMatMul(), scores, by_head)
        self.softmax = Softmax()
        self.reshape = ops.Reshape()

    def construct(self, q: Tensor, k: Tensor, v: Tensor, batch: int) -> Tensor:
        shape = (batch, q.shape[0] // batch, self.heads, self.head_dim)
        q = self.rope_q(self.reshape(q, shape))
        k, v = self.rope_k(self.reshape(k, shape)), self.reshape(v, shape)
        k, v = self.heads_first(k, (0, 2, 1, 3)), self.heads_first(v, (0, 2, 1, 3))
        return self.reshape(self.over(q, k, v, causal_mask(0, shape[1])), (-1, self.heads * self.head_dim))

    def over(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q [B, Q, H, K] over k and v [B, H, C, K] to q's shape; mask [1 or B, 1, Q, C]."""
        batch, queries, context = q.shape[0], q.shape[1], k.shape[2]
        scores = self.mask(self.scores(self.heads_first(q, (0, 2, 1, 3)), k), mask)
        weights = self.softmax(self.reshape(scores, (batch, self.heads * queries, context)))
        out = self.mix(self.reshape(weights, (batch, self.heads, queries, context)), v)
        return self.heads_last(out, (0, 2, 1, 3))


class GeGLU(nn.Cell):
    """``gelu(gate) * up``."""

    def __init__(self) -> None:
        super().__init__()
        self.gelu = shard(ops.GeLU(), ("tokens", "heads"))
        self.times = shard(ops.Mul(), ("tokens", "heads"), ("tokens", "heads"))

    def construct(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.times(self.gelu(gate), up)


class AblatedBlock(nn.Cell):
    """A block that is parallel or serial, with either attention and any mlp: [T, D] to [T, D].

    Serial: ``h = x + Attention(norm(x))``, ``y = h + MLP(norm'(h))``.
    """

    def __init__(self, config: PaLMConfig, weights: dict[str, Parameter], attention: nn.Cell) -> None:
        super().__init__()
        rows, columns = ("tokens", "embed"), ("tokens", "heads")
        self.parallel, self.gated = config.parallel, config.mlp_inputs == 2
        self.q_wi, self.kv, self.o_wo = weights["q_wi"], weights["kv"], weights["o_wo"]
        self.norm = make_norm(config)
        if not self.parallel:
            self.mlp_norm = make_norm(config)
        self.kernels = KernelParts(config)
        self.matmul_in = shard(ops.MatMul(), rows, ("embed", "heads"))
        self.matmul_out = shard(ops.MatMul(), columns, ("heads", "embed"))
        self.project_kv = shard(ops.MatMul(), rows, ("embed", "per_head"))
        self.split_kv = shard(ops.Split(-1, 2), ("tokens", "per_head"))
        self.attention = attention
        self.gate = GeGLU() if config.mlp == "geglu" else SwiGLU()
        self.plain = shard(ops.ReLU() if config.mlp == "relu" else ops.GeLU(), columns)
        self.add, self.dropout = shard(ops.Add(), rows, rows), Dropout()
        self.lora: nn.Cell | None = None

    def construct(self, x: Tensor, where: int | tuple[Tensor, ...], keep: Tensor | None = None) -> Tensor:
        q_wi, kv, o_wo = self.q_wi, self.kv, self.o_wo
        if self.lora is not None:
            q_wi, kv, o_wo = self.lora(q_wi, kv, o_wo)
        w_in, w_o, wo = self.kernels(q_wi, o_wo)
        y = self.norm(x)
        k, v = self.split_kv(self.project_kv(y, kv))
        attention = self.matmul_out(self.attention(self.matmul_in(y, w_in[0]), k, v, where), w_o)
        if keep is not None:
            attention = self.dropout(attention, keep)
        x = self.add(x, attention)
        if not self.parallel:
            y = self.mlp_norm(x)
        up = self.matmul_in(y, w_in[-1])
        mlp = self.gate(self.matmul_in(y, w_in[1]), up) if self.gated else self.plain(up)
        mlp = self.matmul_out(mlp, wo)
        if keep is not None:
            mlp = self.dropout(mlp, keep)
        return self.add(x, mlp)


class KernelParts(nn.Cell):
    """The fused kernels as their parts: (q, gate, up) or (q, up) [D, ...], then o [H*K, D] and wo [F, D]."""

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.sizes_in, self.sizes_out = sizes_in(config), sizes_out(config)
        self.split_in = shard(ops.auto_generate.SplitWithSize(), ("embed", "heads", "per_head"))
        self.split_out = shard(ops.auto_generate.SplitWithSize(), ("heads", "per_head", "embed"))
        self.reshape = ops.Reshape()

    def construct(self, q_wi: Parameter, o_wo: Parameter) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        d_model = q_wi.shape[0]
        w_in = ()
        for kernel in self.split_in(self.reshape(q_wi, (d_model, self.heads, -1)), self.sizes_in, -1):
            w_in += (self.reshape(kernel, (d_model, -1)),)
        w_o, wo = self.split_out(self.reshape(o_wo, (self.heads, -1, d_model)), self.sizes_out, 1)
        return w_in, self.reshape(w_o, (-1, d_model)), self.reshape(wo, (-1, d_model))

"""Ablations: the standard Transformer's serial block, multi-head attention and mlps in place of PaLM's.

PaLM itself uses none of them. Names and layouts of the fused kernels stay. A serial block has a second norm,
``blocks.{i}.mlp_norm.scale``; multi-head attention has a ``kv`` of [D, 2*H*K], all keys before all values.
"""

from __future__ import annotations

from collections.abc import Mapping

from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops.auto_generate import Identity, SplitWithSize

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.attention import Positions, causal_mask
from mindspore_palm.model.block import Block, SwiGLU
from mindspore_palm.model.dropout import Dropout
from mindspore_palm.model.norm import make_norm
from mindspore_palm.model.precision import ToCompute, ToFloat32
from mindspore_palm.model.projection import Kernel, ProjectKv
from mindspore_palm.model.residual import Residual
from mindspore_palm.model.rope import make_rotation
from mindspore_palm.model.weights import sizes_in, sizes_out
from mindspore_palm.parallel.axes import current_layout, shard, shard_weight
from mindspore_palm.parallel.cells import Softmax


class MultiHeadAttention(nn.Cell):
    """Causal attention in which every query head has its own keys and values: q, k and v [T, H*K] to [T, H*K]."""

    query_axis = 2
    """Axis of the queries in scores and mask."""

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        by_position, by_head = ("batch", "length", "heads", "per_head"), ("batch", "heads", "length", "per_head")
        scores = ("batch", "heads", "length", "context")
        self.scale_and_rotate_q = make_rotation(config, "heads", config.head_dim**-0.5)  # 1/sqrt(K) is in its tables
        self.rotate_k = make_rotation(config, "heads", inverse=True)
        self.alibi_heads = config.alibi_heads
        self.heads_first, self.heads_last = shard(ops.Transpose(), by_position), shard(ops.Transpose(), by_head)
        self.scores = shard(ops.BatchMatMul(transpose_b=True), by_head, by_head)
        self.add_mask = shard(ops.Add(), scores, ("one", "one", "length", "context"))
        self.weighted_sum = shard(ops.BatchMatMul(), scores, by_head)
        self.to_float32, self.to_compute = ToFloat32(scores), ToCompute(scores)
        self.softmax = Softmax()
        self.reshape = ops.Reshape()

    def construct(self, q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, sequences: int) -> Tensor:
        shape = (sequences, q_THK.shape[0] // sequences, self.heads, self.head_dim)
        q_BSHK, k_BSHK = self.scale_and_rotate_q(self.reshape(q_THK, shape)), self.rotate_k(self.reshape(k_THK, shape))
        k_BHSK = self.heads_first(k_BSHK, (0, 2, 1, 3))
        v_BHSK = self.heads_first(self.reshape(v_THK, shape), (0, 2, 1, 3))
        attended_BSHK = self.attend_cached(q_BSHK, k_BHSK, v_BHSK, causal_mask(0, shape[1], 2, self.alibi_heads))
        return self.reshape(attended_BSHK, (-1, self.heads * self.head_dim))

    def attend_cached(self, q_BQHK: Tensor, k_BHCK: Tensor, v_BHCK: Tensor, mask: Tensor) -> Tensor:
        """``softmax(q k^T / sqrt(K) + mask) v`` to q's shape; mask [1 or B, 1, Q, C]. 1/sqrt(K) is in q already."""
        batch, queries, context = q_BQHK.shape[0], q_BQHK.shape[1], k_BHCK.shape[2]
        scores_BHQC = self.to_float32(self.scores(self.heads_first(q_BQHK, (0, 2, 1, 3)), k_BHCK))
        weights = self.softmax(self.reshape(self.add_mask(scores_BHQC, mask), (batch, self.heads * queries, context)))
        weights_BHQC = self.to_compute(self.reshape(weights, (batch, self.heads, queries, context)))
        return self.heads_last(self.weighted_sum(weights_BHQC, v_BHCK), (0, 2, 1, 3))


class GeGLU(nn.Cell):
    """``gelu(gate) * up``: two [T, F] to [T, F]."""

    def __init__(self) -> None:
        super().__init__()
        self.gelu = shard(ops.GeLU(), ("tokens", "heads"))
        self.times = shard(ops.Mul(), ("tokens", "heads"), ("tokens", "heads"))

    def construct(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        return self.times(self.gelu(gate_TF), up_TF)


GATES = {"swiglu": SwiGLU, "geglu": GeGLU}
ACTIVATIONS = {
    "gelu": lambda: shard(ops.GeLU(), ("tokens", "heads")),
    "relu": lambda: shard(ops.ReLU(), ("tokens", "heads")),
}
"""Makers of the mlp's activation by ``model.mlp``: [T, F] to [T, F], of gate and up where there is a gate."""


class Activation(nn.Cell):
    """The mlp between its matmuls, of any kind: one or two [T, F] to [T, F]."""

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.gated = config.mlp_inputs == 2
        self.apply_gate = GATES[config.mlp]() if self.gated else None
        self.activation = None if self.gated else ACTIVATIONS[config.mlp]()

    def construct(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return self.apply_gate(inputs[0], inputs[1]) if self.gated else self.activation(inputs[0])


class ProjectKvByHead(ProjectKv):
    """``y [W_k | W_v]`` for multi-head attention: [T, D] to k and v [T, H*K], both sharded over heads.

    A device's shard of the weight holds the keys of its heads, then their values. MindSpore takes that for consecutive
    columns, so the result is split inside each shard.
    """

    columns = "heads"

    def __init__(self, kv: Parameter) -> None:
        super().__init__(kv)
        self.shards, self.reshape = current_layout().shards("heads"), ops.Reshape()
        self.split = shard(ops.Split(-1, 2), ("tokens", "heads", "per_head"))

    def construct(self, y_TD: Tensor) -> tuple[Tensor, Tensor]:
        tokens = y_TD.shape[0]
        by_shard = self.reshape(self.matmul(y_TD, self.to_compute(self.kernel())), (tokens, self.shards, -1))
        k, v = self.split(by_shard)
        return self.reshape(k, (tokens, -1)), self.reshape(v, (tokens, -1))


class ParallelBlock(Block):
    """PaLM's block with any mlp and any attention: ``y = x + MLP(norm(x)) + Attention(norm(x))``."""

    def __init__(self, config: PaLMConfig, weights: Mapping[str, Parameter], attention: nn.Cell) -> None:
        super().__init__(config, weights, attention)
        self.project_kv, self.activation = make_project_kv(config, weights["kv"]), Activation(config)

    def construct(self, x: Tensor, positions: Positions, dropout_mask: Tensor | None = None) -> Tensor:
        y_TD = self.to_compute(self.norm(self.residual.read(x)))
        parts = self.project_in(y_TD)
        k, v = self.project_kv(y_TD)
        attended_THK = self.attention(parts[0], k, v, positions)
        out_TD = self.project_out(attended_THK, self.activation(parts[1:]))
        return self.residual.add(x, self.dropout(out_TD, dropout_mask), after=y_TD)


class SerialBlock(nn.Cell):
    """The standard block: ``h = x + Attention(norm(x))``, ``y = h + MLP(norm'(h))``, with two all-reduces over model.

    Arguments are those of ``Block``.
    """

    def __init__(self, config: PaLMConfig, weights: Mapping[str, Parameter], attention: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        rows, columns, kernel = ("tokens", "embed"), ("tokens", "heads"), ("heads", "embed")
        self.q_wi, self.project_kv = Kernel(weights["q_wi"]), make_project_kv(config, weights["kv"])
        self.o_wo = Kernel(weights["o_wo"])
        self.norm, self.mlp_norm = (
            make_norm(config, weights["norm.scale"]),
            make_norm(config, weights["mlp_norm.scale"]),
        )
        self.to_compute = ToCompute(rows)
        self.split_kernels = SplitKernels(config)
        self.project_in = shard(ops.MatMul(), rows, ("embed", "heads"))
        self.project_out = shard(ops.MatMul(), columns, kernel)
        self.attention, self.activation, self.dropout = attention, Activation(config), Dropout()
        self.residual = Residual(config.d_model)

    def construct(self, x: Tensor, positions: Positions, dropout_mask: Tensor | None = None) -> Tensor:
        w_q, w_in, w_o, w_out = self.split_kernels(self.q_wi(), self.o_wo())
        y_TD = self.to_compute(self.norm(self.residual.read(x)))
        k, v = self.project_kv(y_TD)
        attended_THK = self.attention(self.project_in(y_TD, w_q), k, v, positions)
        h = self.residual.add(x, self.dropout(self.project_out(attended_THK, w_o), dropout_mask), after=y_TD)
        z_TD = self.to_compute(self.mlp_norm(self.residual.read(h)))
        inputs = ()
        for kernel in w_in:
            inputs += (self.project_in(z_TD, kernel),)
        out_TD = self.project_out(self.activation(inputs), w_out)
        return self.residual.add(h, self.dropout(out_TD, dropout_mask), after=z_TD)


def make_project_kv(config: PaLMConfig, kv: Parameter) -> ProjectKv:
    """The projection to keys and values: of one head, or of every head."""
    return (ProjectKv if config.attention == "multi_query" else ProjectKvByHead)(kv)


class SplitKernels(nn.Cell):
    """Splits the fused kernels: into q [D, H*K], the mlp's input kernels [D, F] each, o [H*K, D] and wo [F, D].

    They are in the compute dtype.
    """

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.sizes_in, self.sizes_out = sizes_in(config), sizes_out(config)
        self.to_compute_in, self.to_compute_out = KernelToCompute("embed", "heads"), KernelToCompute("heads", "embed")
        self.split_in = shard_weight(SplitWithSize(), ("embed", "heads", "per_head"))
        self.split_out = shard_weight(SplitWithSize(), ("heads", "per_head", "embed"))
        self.reshape = ops.Reshape()

    def construct(self, q_wi: Tensor, o_wo: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor]:
        q_wi, o_wo, d_model = self.to_compute_in(q_wi), self.to_compute_out(o_wo), q_wi.shape[0]
        w_in = ()
        for kernel in self.split_in(self.reshape(q_wi, (d_model, self.heads, -1)), self.sizes_in, -1):
            w_in += (self.reshape(kernel, (d_model, -1)),)
        w_o, wo = self.split_out(self.reshape(o_wo, (self.heads, -1, d_model)), self.sizes_out, 1)
        return w_in[0], w_in[1:], self.reshape(w_o, (-1, d_model)), self.reshape(wo, (-1, d_model))


class KernelToCompute(nn.Cell):
    """A kernel in the compute dtype, sharded as its axes say, to be reshaped.

    MS-58: MindSpore shards what a Reshape takes by rows over all devices, unless another op has it first: an Identity.
    """

    def __init__(self, *axes: str) -> None:
        super().__init__()
        self.to_compute, self.several = ToCompute(axes), current_layout().devices > 1
        self.identity = shard_weight(Identity(), axes)

    def construct(self, kernel: Tensor) -> Tensor:
        kernel = self.to_compute(kernel)
        return self.identity(kernel) if self.several else kernel

"""Causal multi-query attention (arXiv 1911.02150): many query heads, one head of keys and values."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr
from mindspore.ops.auto_generate import FlashAttentionScore

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.position import alibi_bias
from mindspore_palm.model.precision import ToCompute, ToFloat32
from mindspore_palm.model.rope import make_rotation
from mindspore_palm.parallel.axes import shard
from mindspore_palm.parallel.cells import Softmax

MASKED = -1e9  # added to a masked score, so that its softmax weight is zero
MASK_SIDE, LEFT_UP_CAUSAL = 2048, 2  # the fused primitive's compressed mask, for any length, and its sparse mode
SHORTEST_HALF = 64  # fewest queries in a half for which splitting pays; measured on CPU

Positions = int | tuple[Tensor, ...]
"""Positions of a block's rows, as its attention takes them. Over full sequences: the number of sequences, as each has
positions 0 .. S - 1. With a cache: the rotation's tables, the slots to write, and a mask."""


@constexpr
def causal_mask(first: int, queries: int, query_axis: int = 2, alibi_heads: int = 0) -> Tensor:
    """Mask of queries at positions first .. first + Q - 1 over the context 0 .. first + Q - 1: zero or MASKED.

    Args:
        first: position of the first query.
        queries: Q, the number of queries.
        query_axis: axis of the queries in the result: 2 for float32 [1, 1, Q, C], 1 for [1, Q, 1, C].
        alibi_heads: H if the mask also holds ALiBi's biases, and then has an axis of H; 0 for the mask alone.
    """
    positions = np.arange(first, first + queries)[None]
    return Tensor(cached_mask(positions, first + queries, query_axis, alibi_heads))


def cached_mask(positions: np.ndarray, context: int, query_axis: int, alibi_heads: int = 0) -> np.ndarray:
    """``causal_mask`` of queries at int positions [B, Q] over a context: float32 [B, 1, Q, C] or [B, Q, 1, C]."""
    distance = positions[..., None] - np.arange(context)
    mask = np.expand_dims(np.where(distance >= 0, np.float32(0.0), np.float32(MASKED)), 3 - query_axis)
    if alibi_heads:
        mask = mask + alibi_bias(np.maximum(distance, 0), alibi_heads, 3 - query_axis)
    return mask


class MultiQueryAttention(nn.Cell):
    """``softmax(q k^T / sqrt(K) + causal mask) v`` with one k and v for all heads, after the rotation of q and k.

    Args:
        config: the sizes.
        attend: attention of rotated queries to rotated keys: one of the three Cells below.
    """

    def __init__(self, config: PaLMConfig, attend: nn.Cell) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.scale_and_rotate_q = make_rotation(config, "heads", config.head_dim**-0.5)  # 1/sqrt(K) is in its tables
        self.rotate_k = make_rotation(config, "kv", inverse=True)
        self.attend, self.reshape = attend, ops.Reshape()

    def construct(self, q_THK: Tensor, k_TK: Tensor, v_TK: Tensor, sequences: int) -> Tensor:
        length = q_THK.shape[0] // sequences
        q_BSHK = self.scale_and_rotate_q(self.reshape(q_THK, (sequences, length, self.heads, self.head_dim)))
        k_BS1K = self.rotate_k(self.reshape(k_TK, (sequences, length, 1, self.head_dim)))
        v_BS1K = self.reshape(v_TK, (sequences, length, 1, self.head_dim))
        return self.reshape(self.attend(q_BSHK, k_BS1K, v_BS1K), (-1, self.heads * self.head_dim))


class PlainAttention(nn.Cell):
    """Attention as separate matmuls and a softmax. Subclasses order the heads and positions of the queries.

    Both axes are folded into the rows of one matmul, because CPU and GPU do not broadcast a batched matmul (MS-30).

    Subclasses share an interface: ``construct`` is causal attention over full sequences, ``attend_cached`` is attention
    to a cache. Queries arrive scaled by 1/sqrt(K): the rotation's tables hold the factor.

    Args:
        alibi_heads: H if masks hold ALiBi's biases, which differ by head; else 0.
    """

    order: tuple[str, str]
    """Logical axes of the queries between batch and head_dim."""
    query_axis: int
    """Axis of the queries in q, in scores and in the mask."""

    def __init__(self, alibi_heads: int = 0) -> None:
        super().__init__()
        self.alibi_heads = alibi_heads
        q, rows = ("batch", *self.order, "per_head"), ("batch", "heads", "per_head")
        keys = ("batch", "context", "per_head")
        scores, weights = ("batch", *self.order, "context"), ("batch", "heads", "context")
        mask = ("one", *(axis if axis == "length" else "one" for axis in self.order), "context")
        self.halve_queries = shard(ops.Split(self.query_axis, 2), q)
        self.join_queries = shard(ops.Concat(self.query_axis), q, q)
        self.halve_context = shard(ops.StridedSlice(), keys)
        self.scores = shard(ops.BatchMatMul(transpose_b=True), rows, keys)
        self.to_float32, self.to_compute = ToFloat32(scores), ToCompute(weights)
        self.add_mask, self.softmax = shard(ops.Add(), scores, mask), Softmax()
        self.weighted_sum = shard(ops.BatchMatMul(), weights, keys)
        self.reshape = ops.Reshape()

    def attend_causal(self, q: Tensor, k_BSK: Tensor, v_BSK: Tensor) -> Tensor:
        """Causal attention over full sequences: q in this Cell's order, to q's shape.

        Long queries are split into two halves. The early half cannot see the late half of the context, which saves a
        quarter of both matmuls.
        """
        batch, length, dim = k_BSK.shape
        half = length // 2
        if length % 2 or half < SHORTEST_HALF:
            return self.attend_last(q, k_BSK, v_BSK)
        start, end, step = (0, 0, 0), (batch, half, dim), (1, 1, 1)
        early, late = self.halve_queries(q)  # MS-40: Split, because its gradient is fast
        early_k, early_v = self.halve_context(k_BSK, start, end, step), self.halve_context(v_BSK, start, end, step)
        return self.join_queries((self.attend_last(early, early_k, early_v), self.attend_last(late, k_BSK, v_BSK)))

    def attend_last(self, q: Tensor, k_BCK: Tensor, v_BCK: Tensor) -> Tensor:
        """Causal attention of queries that are the last positions of the context."""
        queries, context = q.shape[self.query_axis], k_BCK.shape[1]
        return self.masked_attention(
            q, k_BCK, v_BCK, causal_mask(context - queries, queries, self.query_axis, self.alibi_heads)
        )

    def masked_attention(self, scaled_q: Tensor, k_BCK: Tensor, v_BCK: Tensor, mask: Tensor) -> Tensor:
        """``softmax(q k^T / sqrt(K) + mask) v``: q and the mask in this Cell's order, to q's shape."""
        batch, outer, inner, dim = scaled_q.shape
        context = k_BCK.shape[1]
        scores = self.scores(self.reshape(scaled_q, (batch, outer * inner, dim)), k_BCK)  # 1/sqrt(K) is in q already
        scores = self.to_float32(self.reshape(scores, (batch, outer, inner, context)))
        scores = self.add_mask(scores, mask)
        weights = self.to_compute(self.softmax(self.reshape(scores, (batch, outer * inner, context))))
        return self.reshape(self.weighted_sum(weights, v_BCK), scaled_q.shape)

    def one_head(self, x_BS1K: Tensor) -> Tensor:
        """Keys or values without the axis of their single head: [B, S, K]."""
        batch, length, _, dim = x_BS1K.shape
        return self.reshape(x_BS1K, (batch, length, dim))


class PositionsFirstAttention(PlainAttention):
    """Queries as the projection returns them, [B, S, H, K]: for heads that are not sharded."""

    order, query_axis = ("length", "heads"), 1

    def construct(self, q_BSHK: Tensor, k_BS1K: Tensor, v_BS1K: Tensor) -> Tensor:
        return self.attend_causal(q_BSHK, self.one_head(k_BS1K), self.one_head(v_BS1K))

    def attend_cached(self, q_BQHK: Tensor, k_BCK: Tensor, v_BCK: Tensor, mask_BQ1C: Tensor) -> Tensor:
        return self.masked_attention(q_BQHK, k_BCK, v_BCK, mask_BQ1C)


class HeadsFirstAttention(PlainAttention):
    """Queries as [B, H, S, K], for sharded heads: the folded rows of a device's heads stay contiguous.

    This costs two transposes.
    """

    order, query_axis = ("heads", "length"), 2

    def __init__(self, alibi_heads: int = 0) -> None:
        super().__init__(alibi_heads)
        self.heads_first = shard(ops.Transpose(), ("batch", "length", "heads", "per_head"))
        self.heads_last = shard(ops.Transpose(), ("batch", "heads", "length", "per_head"))

    def construct(self, q_BSHK: Tensor, k_BS1K: Tensor, v_BS1K: Tensor) -> Tensor:
        q_BHSK = self.heads_first(q_BSHK, (0, 2, 1, 3))
        attended_BHSK = self.attend_causal(q_BHSK, self.one_head(k_BS1K), self.one_head(v_BS1K))
        return self.heads_last(attended_BHSK, (0, 2, 1, 3))

    def attend_cached(self, q_BQHK: Tensor, k_BCK: Tensor, v_BCK: Tensor, mask_B1QC: Tensor) -> Tensor:
        q_BHQK = self.heads_first(q_BQHK, (0, 2, 1, 3))
        return self.heads_last(self.masked_attention(q_BHQK, k_BCK, v_BCK, mask_B1QC), (0, 2, 1, 3))


class FusedAttention(nn.Cell):
    """Causal attention in Ascend's fused primitive, which never stores the scores; its softmax is float32.

    Query heads are sharded as in ``PlainAttention``. The single head of keys and values is replicated.
    """

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        q, kv = ("batch", "length", "heads", "per_head"), ("batch", "context", "kv", "per_head")
        self.fused = shard(
            FlashAttentionScore(
                config.heads,
                scale_value=1.0,  # 1/sqrt(K) is in q already, from the rotation's tables
                input_layout="BSND",
                sparse_mode=LEFT_UP_CAUSAL,
            ),
            q,
            kv,
            kv,
            ("context", "context"),
        )
        self.masked = Tensor(np.triu(np.ones((MASK_SIDE, MASK_SIDE), np.uint8), k=1))  # 1: masked

    def construct(self, q_BSHK: Tensor, k_BS1K: Tensor, v_BS1K: Tensor) -> Tensor:
        return self.fused(q_BSHK, k_BS1K, v_BS1K, None, None, None, self.masked)[3]

"""Causal multi-query attention (arXiv 1911.02150): many query heads, one head of keys and values."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr
from mindspore.ops.auto_generate import FlashAttentionScore

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.precision import ToCompute, ToFloat32
from mindspore_palm.model.rope import Rope
from mindspore_palm.parallel.axes import current_layout, shard

MASKED = -1e9  # added to a score that must not count: exp of it is zero beside any real score
MASK_SIDE, LEFT_UP_CAUSAL = 2048, 2  # the fused primitive's compressed mask, whatever the length, and its name for it
CHUNK = 64  # shortest run of queries worth its own products; measured on CPU


@constexpr
def causal_mask(first: int, queries: int, axis: int = 2) -> Tensor:
    """What the scores of positions first .. first + queries get: float32 [1, 1, queries, first + queries].

    Args:
        first: position of the first query.
        queries: how many.
        axis: of the queries in the result; 1 gives [1, queries, 1, first + queries].
    """
    seen = np.arange(first, first + queries)[:, None] >= np.arange(first + queries)[None, :]
    return Tensor(np.expand_dims(np.where(seen, 0.0, MASKED).astype(np.float32), (0, 3 - axis)))


class Softmax(nn.Cell):
    """Softmax over the last axis of [B, H*Q, S].

    As a matrix where no axis is cut: the reduction of its gradient is then 17 times faster on CPU (MS-36). An array
    that is cut along two axes could not be flattened without communication.
    """

    def __init__(self) -> None:
        super().__init__()
        layout = current_layout()
        self.flatten = layout.shards("batch") * layout.shards("heads") == 1
        rows = ("length", "context") if self.flatten else ("batch", "heads", "context")
        self.softmax = shard(ops.Softmax(-1), rows)
        self.reshape = ops.Reshape()

    def construct(self, scores: Tensor) -> Tensor:
        if self.flatten:
            rows = self.reshape(scores, (-1, scores.shape[-1]))
            return self.reshape(self.softmax(rows), scores.shape)
        return self.softmax(scores)


class MultiQueryAttention(nn.Cell):
    """``softmax(q k^T / sqrt(K) + causal mask) v`` with one k and v for all heads, after the rotation of q and k."""

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.rope_q = Rope("heads", config.head_dim**-0.5, config.xpos_base)
        self.rope_k = Rope("kv", xpos_base=-config.xpos_base)
        self.attend = FusedAttention(config) if current_layout().target == "Ascend" else PlainAttention()
        self.reshape = ops.Reshape()

    def construct(self, q: Tensor, k: Tensor, v: Tensor, batch: int) -> Tensor:
        """q [T, H*K], k and v [T, K] to [T, H*K]."""
        length = q.shape[0] // batch
        q = self.rope_q(self.reshape(q, (batch, length, self.heads, self.head_dim)))
        k = self.rope_k(self.reshape(k, (batch, length, 1, self.head_dim)))
        v = self.reshape(v, (batch, length, 1, self.head_dim))
        return self.reshape(self.attend(q, k, v), (-1, self.heads * self.head_dim))


class PlainAttention(nn.Cell):
    """Causal attention in products of its own: q [B, S, H, K], scaled, k and v [B, S, 1, K] to [B, S, H, K].

    Heads and positions of the queries are folded into the rows of one product, because CPU and GPU do not broadcast a
    batched one (MS-30). On one device positions come first, as the projection leaves them; where heads are cut over
    devices they must come first, so that a device's rows stay together, and that takes two transpositions.

    Queries go in two runs where they are long enough: the first half need not look at the second, which saves a quarter
    of both products.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_head = current_layout().shards("heads") > 1
        self.query_axis = 2 if self.by_head else 1
        order = ("heads", "length") if self.by_head else ("length", "heads")
        q, rows, keys = ("batch", *order, "per_head"), ("batch", "heads", "per_head"), ("batch", "context", "per_head")
        scores = ("batch", *order, "context")
        mask = ("one", "one", "length", "context") if self.by_head else ("one", "length", "one", "context")
        self.heads_first = shard(ops.Transpose(), ("batch", "length", "heads", "per_head"))
        self.heads_last = shard(ops.Transpose(), ("batch", "heads", "length", "per_head"))
        # MS-40: by Split, whose gradient is fast
        self.halve_queries = shard(ops.Split(self.query_axis, 2), q)
        self.join_queries = shard(ops.Concat(self.query_axis), q, q)
        self.halve_keys = shard(ops.StridedSlice(), keys)
        self.scores = shard(ops.BatchMatMul(transpose_b=True), rows, keys)
        self.to_float32, self.to_compute = ToFloat32(scores), ToCompute(("batch", "heads", "context"))
        self.mask = shard(ops.Add(), scores, mask)
        self.softmax = Softmax()
        self.mix = shard(ops.BatchMatMul(), ("batch", "heads", "context"), keys)
        self.reshape = ops.Reshape()

    def construct(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, length, _, dim = q.shape
        if self.by_head:
            q = self.heads_first(q, (0, 2, 1, 3))
        k, v = self.reshape(k, (batch, length, dim)), self.reshape(v, (batch, length, dim))
        half = length // 2
        if length % 2 == 0 and half >= CHUNK:
            early, late = self.halve_queries(q)
            past, end, step = (0, 0, 0), (batch, half, dim), (1, 1, 1)
            early = self.causal(early, self.halve_keys(k, past, end, step), self.halve_keys(v, past, end, step))
            out = self.join_queries((early, self.causal(late, k, v)))
        else:
            out = self.causal(q, k, v)
        return self.heads_last(out, (0, 2, 1, 3)) if self.by_head else out

    def over(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q [B, Q, H, K] over k and v [B, C, K] to q's shape; mask [B, Q, 1, C], or [B, 1, Q, C] if query_axis is 2."""
        if not self.by_head:
            return self.look(q, k, v, mask)
        return self.heads_last(self.look(self.heads_first(q, (0, 2, 1, 3)), k, v, mask), (0, 2, 1, 3))

    def causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The last Q of C positions look at what is not behind them: as ``look``."""
        queries, context = q.shape[self.query_axis], k.shape[1]
        return self.look(q, k, v, causal_mask(context - queries, queries, self.query_axis))

    def look(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Q positions look at C: q [B, Q, H, K] (or [B, H, Q, K]), k and v [B, C, K] to q's shape."""
        batch, outer, inner, dim = q.shape
        context = k.shape[1]
        scores = self.scores(self.reshape(q, (batch, outer * inner, dim)), k)
        scores = self.to_float32(self.reshape(scores, (batch, outer, inner, context)))
        scores = self.mask(scores, mask)
        weights = self.to_compute(self.softmax(self.reshape(scores, (batch, outer * inner, context))))
        return self.reshape(self.mix(weights, v), q.shape)


class FusedAttention(nn.Cell):
    """The same in Ascend's fused primitive, which never holds the scores: arguments and result as of PlainAttention.

    Query heads are cut over devices as in the plain path; every device has the one key and value head. Softmax is in
    float32 inside the primitive.
    """

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        q, kv = ("batch", "length", "heads", "per_head"), ("batch", "context", "kv", "per_head")
        self.fused = shard(
            FlashAttentionScore(
                config.heads,
                scale_value=1.0,  # it is in the rotation's tables
                input_layout="BSND",
                sparse_mode=LEFT_UP_CAUSAL,
            ),
            q,
            kv,
            kv,
            ("context", "context"),
        )
        self.seen = Tensor(np.triu(np.ones((MASK_SIDE, MASK_SIDE), np.uint8), k=1))  # 1: not to be seen

    def construct(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.fused(q, k, v, None, None, None, self.seen)[3]

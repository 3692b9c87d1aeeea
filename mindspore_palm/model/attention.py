"""Causal multi-query attention (arXiv 1911.02150): many query heads, one head of keys and values."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.rope import Rope
from mindspore_palm.parallel.axes import current_layout, shard

MASKED = -1e9  # added to a score that must not count: exp of it is zero beside any real score
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

    As a matrix where no axis is cut: the reduction of its gradient is then 17 times faster on CPU. An array that is
    cut along two axes could not be flattened without communication.
    """

    def __init__(self) -> None:
        super().__init__()
        layout = current_layout()
        self.flatten = layout.shards("batch") * layout.shards("heads") == 1
        self.softmax = shard(ops.Softmax(-1), ("batch", "heads", "context"))
        self.reshape = ops.Reshape()

    def construct(self, scores: Tensor) -> Tensor:
        if self.flatten:
            rows = self.reshape(scores, (-1, scores.shape[-1]))
            return self.reshape(self.softmax(rows), scores.shape)
        return self.softmax(scores)


class MultiQueryAttention(nn.Cell):
    """``softmax(q k^T / sqrt(K) + causal mask) v`` with one k and v for all heads.

    Heads and positions of the queries are folded into the rows of one product, because CPU and GPU do not broadcast a
    batched one. On one device positions come first, as the projection leaves them; where heads are cut over devices
    they must come first, so that a device's rows stay together, and that takes two transpositions.

    Queries go in two runs where they are long enough: the first half need not look at the second, which saves a quarter
    of both products.
    """

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.by_head = current_layout().shards("heads") > 1
        self.query_axis = 2 if self.by_head else 1
        order = ("heads", "length") if self.by_head else ("length", "heads")
        q, rows, keys = ("batch", *order, "per_head"), ("batch", "heads", "per_head"), ("batch", "context", "per_head")
        mask = ("one", "one", "length", "context") if self.by_head else ("one", "length", "one", "context")
        self.rope_q, self.rope_k = Rope("heads", scale=config.head_dim**-0.5), Rope("kv")
        self.heads_first = shard(ops.Transpose(), ("batch", "length", "heads", "per_head"))
        self.heads_last = shard(ops.Transpose(), ("batch", "heads", "length", "per_head"))
        self.halve_queries = shard(ops.Split(self.query_axis, 2), q)
        self.join_queries = shard(ops.Concat(self.query_axis), q, q)
        self.halve_keys = shard(ops.StridedSlice(), keys)
        self.scores = shard(ops.BatchMatMul(transpose_b=True), rows, keys)
        self.mask = shard(ops.Add(), ("batch", *order, "context"), mask)
        self.softmax = Softmax()
        self.mix = shard(ops.BatchMatMul(), ("batch", "heads", "context"), keys)
        self.reshape = ops.Reshape()

    def construct(self, q: Tensor, k: Tensor, v: Tensor, batch: int) -> Tensor:
        """q [T, H*K], k and v [T, K] to [T, H*K]."""
        length = q.shape[0] // batch
        q = self.rope_q(self.reshape(q, (batch, length, self.heads, self.head_dim)))
        if self.by_head:
            q = self.heads_first(q, (0, 2, 1, 3))
        k = self.rope_k(self.reshape(k, (batch, length, 1, self.head_dim)))
        k = self.reshape(k, (batch, length, self.head_dim))
        v = self.reshape(v, (batch, length, self.head_dim))
        half = length // 2
        if length % 2 == 0 and half >= CHUNK:
            early, late = self.halve_queries(q)
            past, end, step = (0, 0, 0), (batch, half, self.head_dim), (1, 1, 1)
            early = self.attend(early, self.halve_keys(k, past, end, step), self.halve_keys(v, past, end, step))
            out = self.join_queries((early, self.attend(late, k, v)))
        else:
            out = self.attend(q, k, v)
        if self.by_head:
            out = self.heads_last(out, (0, 2, 1, 3))
        return self.reshape(out, (-1, self.heads * self.head_dim))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The last Q of C positions look at all C: q [B, Q, H, K] (or [B, H, Q, K]), k and v [B, C, K] to q's shape."""
        batch, outer, inner, dim = q.shape
        queries, context = q.shape[self.query_axis], k.shape[1]
        scores = self.scores(self.reshape(q, (batch, outer * inner, dim)), k)
        mask = causal_mask(context - queries, queries, self.query_axis)
        scores = self.mask(self.reshape(scores, (batch, outer, inner, context)), mask)
        weights = self.softmax(self.reshape(scores, (batch, outer * inner, context)))
        return self.reshape(self.mix(weights, v), q.shape)

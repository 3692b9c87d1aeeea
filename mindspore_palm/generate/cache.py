"""Attention with a key-value cache, for decoding.

Multi-query attention exists for this (arXiv 1911.02150): a token adds one key and one value per layer to the cache,
whatever the number of query heads.
"""

from __future__ import annotations

from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.factory import make_cached_attention
from mindspore_palm.model.precision import MS_DTYPES
from mindspore_palm.model.rope import make_rotation
from mindspore_palm.parallel.axes import current_layout, shard


class CachedAttention(nn.Cell):
    """Appends the keys and values of Q new tokens per sequence, then attends from these tokens to the whole cache.

    Args:
        config: the sizes; with multi-head attention, every head caches its own keys and values.
        sequences: B, sequences in the cache.
        context: C, cached positions per sequence.
    """

    def __init__(self, config: PaLMConfig, sequences: int, context: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.kv_heads = config.heads, config.head_dim, config.kv_heads
        # the tables of queries include 1/sqrt(K)
        self.rope_q, self.rope_k = make_rotation(config, "heads", config.head_dim**-0.5), make_rotation(config, "kv")
        multi_query = config.attention == "multi_query"
        self.attention = make_cached_attention(config)
        shape = (sequences, context, self.head_dim) if multi_query else (sequences, self.heads, context, self.head_dim)
        rows = ("batch", "context", "per_head") if multi_query else ("batch", "heads", "context", "per_head")
        dtype = MS_DTYPES[current_layout().compute_dtype]
        self.keys = Parameter(initializer("zeros", shape, dtype), name="keys", requires_grad=False)
        self.values = Parameter(initializer("zeros", shape, dtype), name="values", requires_grad=False)
        self.write = shard(ops.ScatterNdUpdate(), rows, ("tokens", "one"), ("tokens", "per_head"))
        self.sequences, self.select = sequences, shard(ops.Gather(), rows, ("one",))
        self.reshape = ops.Reshape()

    def construct(self, q: Tensor, k: Tensor, v: Tensor, positions: tuple[Tensor, ...]) -> Tensor:
        """Attends from q [b*Q, H*K] to k and v [b*Q, K] (or H*K) to [b*Q, H*K], for b of the B sequences.

        ``Decoder`` builds the positions; their last element holds the indices of the b sequences.
        """
        cos_q, sin_q, cos_k, sin_k, slots, mask, sequences = positions
        batch, queries = cos_q.shape[0], cos_q.shape[1]
        q = self.reshape(q, (batch, queries, self.heads, self.head_dim))
        k = self.reshape(k, (batch, queries, self.kv_heads, self.head_dim))
        q, k = self.rope_q.rotate(q, cos_q, sin_q), self.rope_k.rotate(k, cos_k, sin_k)
        keys = self.write(self.keys, slots, self.reshape(k, (-1, self.head_dim)))
        values = self.write(self.values, slots, self.reshape(v, (-1, self.head_dim)))
        if batch != self.sequences:
            keys, values = self.select(keys, sequences, 0), self.select(values, sequences, 0)
        return self.reshape(self.attention.attend_cached(q, keys, values, mask), (-1, self.heads * self.head_dim))

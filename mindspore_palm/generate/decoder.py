"""Logits of the next token from cached keys and values: a network for chunks of a prompt, and for one token.

Reading a prompt takes chunks of CHUNK tokens of each sequence, writing takes one. Both shapes are fixed, whatever the
prompts, so nothing is compiled on the way.

Slots of the cache behind a sequence's last token may hold anything (a chunk is filled up; a short prompt waits for a
long one): no token sees a slot behind its own position, and by the time it may, the slot has been written again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops

from mindspore_palm.generate import cpu_step
from mindspore_palm.generate.cache import CachedAttention
from mindspore_palm.model.attention import MASKED
from mindspore_palm.model.factory import make_block
from mindspore_palm.model.lora import adapters_of
from mindspore_palm.model.loss import TokenLoss
from mindspore_palm.model.palm import PaLM
from mindspore_palm.model.rope import tables
from mindspore_palm.parallel.axes import shard
from mindspore_palm.parallel.context import partition

CHUNK = 64  # tokens of a prompt that are read at once


class Step(nn.Cell):
    """Q new tokens of each of B sequences: to logits float32 [B, vocab_size] of one of them each, and log(Z) [B].

    The blocks are those of the network, with its own weights, around another attention.
    """

    def __init__(self, palm: PaLM, sequences: int, context: int) -> None:
        super().__init__(auto_prefix=False)
        config = palm.config
        self.palm, self.blocks = palm, nn.CellList(auto_prefix=False)
        if adapters_of(palm):
            raise ValueError("a network with adapters is for training; decode the result of model.lora.merge instead")
        for i in range(config.layers):
            cache = CachedAttention(config, sequences, context)
            cache.keys.name, cache.values.name = f"cache.{i}.keys", f"cache.{i}.values"
            self.blocks.append(make_block(config, palm.block_weights(i), cache))
        self.query_axis = self.blocks[0].attention.attention.query_axis
        self.pick = shard(ops.Gather(), ("tokens", "embed"), ("batch",))
        self.token_loss, self.targets = TokenLoss(config), Tensor(np.zeros(sequences, np.int32))

    @property
    def compile_phase(self) -> str:
        """For MindSpore: which compilation is used."""
        return self._compile_phase

    @compile_phase.setter
    def compile_phase(self, phase: str) -> None:
        # MindSpore tells it all Cells inside at every call, which takes 4 ms; they need it while they are compiled
        if phase not in self.compile_cache:
            nn.Cell.compile_phase.fset(self, phase)

    def construct(
        self,
        token_ids: Tensor,
        cos_q: Tensor,
        sin_q: Tensor,
        cos_k: Tensor,
        sin_k: Tensor,
        slots: Tensor,
        mask: Tensor,
        rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x = self.palm.embed(token_ids)
        for block in self.blocks:
            x = block(x, (cos_q, sin_q, cos_k, sin_k, slots, mask))
        if token_ids.shape[1] > 1:
            x = self.pick(x, rows, 0)
        logits = self.palm.unembed(x)
        return self.palm.drop_vocab_padding(logits), self.token_loss(logits, self.targets)[1]


TABLE = ("batch", "length", "one", "per_head")
INPUTS = (("batch", "length"), TABLE, TABLE, TABLE, TABLE, ("tokens", "one"), ("one",) * 4, ("batch",))


class Decoder:
    """What B sequences hold so far, and the logits of what comes next.

    Args:
        palm: the network.
        sequences: B.
        context: positions of a sequence at most.
    """

    def __init__(self, palm: PaLM, sequences: int, context: int) -> None:
        self.sequences, self.context = sequences, -(-context // CHUNK) * CHUNK
        self._kv_heads = palm.config.kv_heads
        self._by_head = palm.config.attention == "multi_head"
        turns = [
            table
            for scale, xpos_base in ((palm.config.head_dim**-0.5, palm.config.xpos_base), (1.0, -palm.config.xpos_base))
            for table in tables(self.context, palm.config.head_dim, scale, xpos_base)
        ]
        self._tables = [table[:, None] for table in turns]
        step = Step(palm, sequences, self.context)
        self._query_axis = step.query_axis
        self._step = partition(step, *INPUTS)
        self._cpu_step = None
        if cpu_step.usable(palm.config):
            self._cpu_step = cpu_step.CpuStep(palm, [block.attention for block in step.blocks], turns)

    def read(self, contexts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Starts each sequence anew: float32 [B, vocab_size] and [B], the logits behind its last token and log(Z)."""
        lengths = np.array([len(tokens) for tokens in contexts])
        padded = np.zeros((self.sequences, self.context), np.int32)
        for row, tokens in zip(padded, contexts, strict=True):
            row[: len(tokens)] = tokens
        logits, log_z = np.empty(0), np.empty(0)
        for start in range(0, lengths.max(), CHUNK):
            last = np.clip(lengths - 1 - start, 0, CHUNK - 1)
            found = self._run(padded[:, start : start + CHUNK], np.full(self.sequences, start), last)
            ends = (lengths > start)[:, None]
            if not start:
                logits, log_z = found[0].asnumpy(), found[1].asnumpy()
            elif ends.any():
                logits = np.where(ends, found[0].asnumpy(), logits)
                log_z = np.where(ends[:, 0], found[1].asnumpy(), log_z)
        return logits, log_z

    def write(self, tokens: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One more token of each sequence, int32 [B], at its position [B]: as ``read``."""
        if len(tokens) != self.sequences or len(positions) != self.sequences:
            raise ValueError(f"{len(tokens)} tokens at {len(positions)} positions for {self.sequences} sequences")
        token_ids = tokens[:, None].astype(np.int32)
        if self._cpu_step is not None:
            logits, log_z = self._cpu_step(Tensor(token_ids), Tensor(positions.astype(np.int32)))
        else:
            logits, log_z = self._run(token_ids, positions, np.zeros_like(positions))
        return logits.asnumpy(), log_z.asnumpy()

    def _run(self, token_ids: np.ndarray, first: np.ndarray, last: np.ndarray) -> tuple[Tensor, Tensor]:
        """int32 [B, Q] at positions from first [B] on: the step's results for the token ``last`` [B] of each."""
        batch, queries = token_ids.shape
        positions = first[:, None] + np.arange(queries)
        turns = (Tensor(table[positions]) for table in self._tables)
        mask = np.where(np.arange(self.context) <= positions[..., None], np.float32(0.0), np.float32(MASKED))
        mask = np.expand_dims(mask, 3 - self._query_axis)
        return self._step(
            Tensor(token_ids),
            *turns,
            Tensor(self._slots(positions)),
            Tensor(mask),
            Tensor((np.arange(batch) * queries + last).astype(np.int32)),
        )

    def _slots(self, positions: np.ndarray) -> np.ndarray:
        """Where the caches are written: (sequence, position), or (sequence, head, position), of every row."""
        batch, queries = positions.shape
        sequence = np.repeat(np.arange(batch), queries)
        if not self._by_head:
            return np.stack([sequence, positions.reshape(-1)], -1).astype(np.int32)
        rows = [np.repeat(sequence, self._kv_heads), np.tile(np.arange(self._kv_heads), batch * queries)]
        return np.stack([*rows, np.repeat(positions.reshape(-1), self._kv_heads)], -1).astype(np.int32)

"""Cached decoding: logits of the next token, from chunks of a prompt and from one token at a time.

Reading a prompt (prefill) takes chunks of CHUNK tokens of one sequence; writing (decoding) takes one token of every
sequence. Both shapes are fixed, so a new prompt never compiles anything. On one CPU, a C++ function each does the same
(``cpu/step.py``); its prompts are as many tokens of as many sequences as fit in a call.

On CPU, a sequence has the same bits alone and in any batch. MindSpore's matmuls there add in an order that depends on
the number of rows, so they get the rows of one sequence at a time. The C++ functions add in one order for every batch,
and for any chunks of a prompt. GPU and Ascend write all sequences at once; otherwise batches would be no faster.

Cache slots after a sequence's last token may hold anything, because MindSpore's ops read padded chunks. No token sees a
slot after its own position, and each slot is overwritten before it becomes visible.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.errors import UserError
from mindspore_palm.generate.cache import CachedAttention
from mindspore_palm.generate.cpu import step as cpu_step
from mindspore_palm.generate.cpu.step import IDLE
from mindspore_palm.model.attention import cached_mask
from mindspore_palm.model.factory import make_block
from mindspore_palm.model.lora import adapters_of
from mindspore_palm.model.loss import TokenLoss
from mindspore_palm.model.palm import PaLM
from mindspore_palm.model.rope import tables
from mindspore_palm.parallel.axes import current_layout, shard
from mindspore_palm.parallel.context import partition
from mindspore_palm.parallel.top_cell import TopCell

CHUNK = 64  # tokens of a prompt that are read in one call


class DecodeStep(TopCell):
    """Q new tokens of b of the B sequences, to logits float32 [b, vocab_size] of one token each and log(Z) [b].

    The blocks share the network's weights, and have cached attention in place of the network's.
    """

    def __init__(self, palm: PaLM, sequences: int, context: int, vocabulary: PaLMConfig | None = None) -> None:
        super().__init__(auto_prefix=False)
        config = palm.config
        self.palm, self.blocks = palm, nn.CellList(auto_prefix=False)
        if adapters_of(palm):
            raise ValueError("a network with adapters is for training; decode the result of model.lora.merge instead")
        for i in range(config.layers):
            cache = CachedAttention(config, sequences, context)
            cache.keys.name, cache.values.name = f"cache.{i}.keys", f"cache.{i}.values"  # MS-25
            self.blocks.append(make_block(config, palm.block_weights(i), cache))
        self.query_axis = self.blocks[0].attention.attention.query_axis
        self.select = shard(ops.Gather(), ("tokens", "embed"), ("batch",))
        self.token_loss = TokenLoss(vocabulary or palm.config)
        self.targets, self.one_target = (Tensor(np.zeros(n, np.int32)) for n in (sequences, 1))
        self.sequences = sequences

    def construct(
        self,
        token_ids: Tensor,
        cos_q: Tensor,
        sin_q: Tensor,
        cos_k: Tensor,
        sin_k: Tensor,
        slots: Tensor,
        mask: Tensor,
        sequences: Tensor,
        rows: Tensor,
        position_ids: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x, table_VD = self.palm.embed(token_ids, None, position_ids)
        for block in self.blocks:
            x = block(x, (cos_q, sin_q, cos_k, sin_k, slots, mask, sequences))
        if token_ids.shape[1] > 1:
            x = self.select(x, rows, 0)
        logits = self.palm.unembed(x, table_VD)
        targets = self.targets if token_ids.shape[0] == self.sequences else self.one_target
        return self.palm.drop_vocab_padding(logits), self.token_loss(logits, targets)[1]


TABLE = ("batch", "length", "one", "per_head")
IDS = ("batch", "length")
INPUTS = (IDS, TABLE, TABLE, TABLE, TABLE, ("tokens", "one"), ("one",) * 4, ("one",), ("batch",), IDS)


class Decoder:
    """The caches of B sequences, and the logits of their next tokens.

    Args:
        palm: the network.
        sequences: B.
        context: maximum number of positions of a sequence.
        vocabulary: the network's configuration, narrowed to a tokenizer by ``fit_vocabulary``; None: the network's own.

    Raises:
        UserError: learned positions end before the context does.
    """

    def __init__(self, palm: PaLM, sequences: int, context: int, vocabulary: PaLMConfig | None = None) -> None:
        vocabulary = vocabulary or palm.config
        if palm.config.longest is not None and context > palm.config.longest:
            raise UserError(
                f"context = {context}: the model has learned {palm.config.longest} positions, and no token has a later "
                f"one; set the context to at most {palm.config.longest}"
            )
        self._vocab_size = vocabulary.vocab_size
        self.sequences, self.context, self.chunk = sequences, -(-context // CHUNK) * CHUNK, CHUNK
        self._kv_heads, self._alibi_heads = palm.config.kv_heads, palm.config.alibi_heads
        self._longest = palm.config.longest
        self._by_head = palm.config.attention == "multi_head"
        rotation = [
            table
            for scale, xpos_base in ((palm.config.head_dim**-0.5, palm.config.xpos_base), (1.0, -palm.config.xpos_base))
            for table in tables(self.context, palm.config.head_dim, scale, xpos_base)
        ]
        self._tables = [table[:, None] for table in rotation]
        step = DecodeStep(palm, sequences, self.context, vocabulary)
        self._query_axis = step.query_axis
        self._step = partition(step, *INPUTS)
        self._one_by_one = current_layout().target == "CPU" and ms.get_context("device_target") == "CPU"
        self._cpu_step = self._cpu_prompts = None
        if cpu_step.usable(palm.config):
            caches = [block.attention for block in step.blocks]
            self._cpu_step = cpu_step.CpuStep(palm, caches, rotation, self._vocab_size)
            self._cpu_prompts = cpu_step.CpuPrompts(palm, caches, rotation, self._vocab_size)

    def read(self, contexts: Sequence[Sequence[int] | None]) -> tuple[np.ndarray, np.ndarray]:
        """Starts sequences over; returns float32 [B, vocab_size] and [B]: logits after each last token, and log(Z).

        Sequences without a context, or with None, stay as they are; their results are zero.
        """
        if self._cpu_prompts is not None:
            parts = [(i, tokens, 0) for i, tokens in enumerate(contexts) if tokens is not None]
            return self._read_in_cpp(self._cpu_prompts, parts)
        results: list[tuple[Tensor, Tensor] | None] = [None] * self.sequences
        for sequence, tokens in enumerate(contexts):
            if tokens is None:
                continue
            for start in range(0, len(tokens), CHUNK):
                results[sequence] = self._run_chunk(sequence, tokens, start)
        return self._stack(results)

    def read_chunk(self, sequence: int, tokens: Sequence[int], start: int) -> tuple[np.ndarray, float]:
        """Reads one chunk of a sequence, as ``read`` does one after another.

        Args:
            sequence: its number.
            tokens: all of its tokens.
            start: position of the chunk's first token, a multiple of ``chunk``.

        Returns:
            float32 [vocab_size] and log(Z): the logits after the chunk's last token.
        """
        if self._cpu_prompts is not None:
            part = sequence, tokens[start : start + CHUNK], start
            all_logits, all_log_z = self._read_in_cpp(self._cpu_prompts, [part])
            return all_logits[sequence], float(all_log_z[sequence])
        logits, log_z = self._run_chunk(sequence, tokens, start)
        return logits.asnumpy()[0, : self._vocab_size], float(log_z.asnumpy()[0])

    def _read_in_cpp(
        self, read: cpu_step.CpuPrompts, parts: Sequence[tuple[int, Sequence[int], int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads tokens of sequences in C++; returns logits and log(Z) as ``read`` does.

        Args:
            read: the C++ function.
            parts: of each sequence its number, tokens, and the position of the first.
        """
        logits, log_z = self._stack([])
        columns = [np.zeros((4, 0), np.int32)]
        for sequence, tokens, start in parts:
            rows = np.zeros((4, len(tokens)), np.int32)
            rows[0], rows[1], rows[2] = tokens, sequence, start + np.arange(len(tokens))
            rows[3, -1:] = 1  # logits after the last token alone
            columns.append(rows)
        all_rows, size = np.concatenate(columns, 1), read.ROWS
        for first in range(0, all_rows.shape[1], size):
            rows = all_rows[:, first : first + size]
            padding = np.repeat(np.array([[0], [0], [IDLE], [0]], np.int32), size - rows.shape[1], 1)
            found = read(Tensor(np.concatenate([rows, padding], 1)))
            ended = rows[1, rows[3] == 1]
            logits[ended], log_z[ended] = found[0].asnumpy()[ended], found[1].asnumpy()[ended]
        return logits, log_z

    def _run_chunk(self, sequence: int, tokens: Sequence[int], start: int) -> tuple[Tensor, Tensor]:
        padded = np.zeros((1, CHUNK), np.int32)
        chunk = tokens[start : start + CHUNK]
        padded[0, : len(chunk)] = chunk
        return self._run(padded, np.array([start]), np.array([len(chunk) - 1]), sequence)

    def write(
        self, tokens: np.ndarray, positions: np.ndarray, wanted: Sequence[bool] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Appends one token to each sequence; returns logits and log(Z) as ``read`` does.

        Args:
            tokens: int32 [B], the new tokens.
            positions: int32 [B], their positions.
            wanted: which sequences are meant, at least one, by default all. The results of the others may be zero, and
                their tokens may be appended or not.
        """
        if len(tokens) != self.sequences or len(positions) != self.sequences:
            raise ValueError(f"{len(tokens)} tokens at {len(positions)} positions for {self.sequences} sequences")
        token_ids = tokens[:, None].astype(np.int32)
        if self._cpu_step is not None:
            written = positions if wanted is None else np.where(wanted, positions, IDLE)
            logits, log_z = self._cpu_step(Tensor(token_ids), Tensor(written.astype(np.int32)))
        elif self._one_by_one:
            results: list[tuple[Tensor, Tensor] | None] = [None] * self.sequences
            for row, is_wanted in enumerate([True] * self.sequences if wanted is None else wanted):
                if is_wanted:
                    only = slice(row, row + 1)
                    results[row] = self._run(token_ids[only], positions[only], np.zeros(1, np.int64), row)
            return self._stack(results)
        else:
            logits, log_z = self._run(token_ids, positions, np.zeros_like(positions))
        return logits.asnumpy()[:, : self._vocab_size], log_z.asnumpy()

    def _stack(self, results: Sequence[tuple[Tensor, Tensor] | None]) -> tuple[np.ndarray, np.ndarray]:
        """Stacks the results of one sequence each."""
        logits = np.zeros((self.sequences, self._vocab_size), np.float32)
        log_z = np.zeros(self.sequences, np.float32)
        for sequence, result in enumerate(results):
            if result is not None:
                logits[sequence] = result[0].asnumpy()[0, : self._vocab_size]
                log_z[sequence] = result[1].asnumpy()[0]
        return logits, log_z

    def _run(
        self, token_ids: np.ndarray, first: np.ndarray, last: np.ndarray, sequence: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Runs the step on int32 [b, Q] for sequences ``sequence`` .. ``sequence + b``.

        Positions start at ``first`` [b]; the results are those of token ``last`` [b] of each row.
        """
        batch, queries = token_ids.shape
        positions = first[:, None] + np.arange(queries)
        rotation = (Tensor(table[positions]) for table in self._tables)
        mask = cached_mask(positions, self.context, self._query_axis, self._alibi_heads)
        last_row = (self._longest or self.context) - 1  # padding of a chunk may be beyond learned positions
        return self._step(
            Tensor(token_ids),
            *rotation,
            Tensor(self._slots(positions, sequence)),
            Tensor(mask),
            Tensor((sequence + np.arange(batch)).astype(np.int32)),
            Tensor((np.arange(batch) * queries + last).astype(np.int32)),
            Tensor(np.minimum(positions, last_row).astype(np.int32)),
        )

    def _slots(self, positions: np.ndarray, first: int) -> np.ndarray:
        """Slots of the caches to write, for every row: (sequence, position), or (sequence, head, position)."""
        batch, queries = positions.shape
        sequence = first + np.repeat(np.arange(batch), queries)
        if not self._by_head:
            return np.stack([sequence, positions.reshape(-1)], -1).astype(np.int32)
        rows = [np.repeat(sequence, self._kv_heads), np.tile(np.arange(self._kv_heads), batch * queries)]
        return np.stack([*rows, np.repeat(positions.reshape(-1), self._kv_heads)], -1).astype(np.int32)

"""PaLM: token ids to logits (arXiv 2204.02311, section 2)."""

from __future__ import annotations

from functools import partial

from mindspore import Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.ablations import make_block
from mindspore_palm.model.dropout import Dropout, Layers
from mindspore_palm.model.initial import initial_weight, weight_axes, weight_shapes
from mindspore_palm.model.norm import make_norm
from mindspore_palm.model.precision import ToCompute
from mindspore_palm.parallel.axes import current_layout, shard
from mindspore_palm.parallel.context import use_graphs
from mindspore_palm.parallel.recompute import residual_width
from mindspore_palm.parallel.weights import make_weight


class PaLM(nn.Cell):
    """The network: ``PaLM(config)(token_ids)`` takes int32 [B, S] to float32 logits [B, S, vocab_size].

    Weights are named ``embedding`` and ``blocks.{i}.norm.scale``, ``.q_wi``, ``.kv``, ``.o_wo``: the checkpoint format.

    Args:
        config: the sizes.
        seed: decides the initial weights, together with their names.
    """

    def __init__(self, config: PaLMConfig, seed: int = 0) -> None:
        super().__init__()
        use_graphs()
        self.config = config
        axes = weight_axes(config)
        weights = {
            name: make_weight(name, shape, axes[name], partial(initial_weight, config, seed, name))
            for name, shape in weight_shapes(config).items()
        }
        self.embedding = weights["embedding"]
        self.blocks = nn.CellList()
        for i in range(config.layers):
            prefix = f"blocks.{i}."
            own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
            self.blocks.append(make_block(config, own))
        for name, parameter in self.parameters_and_names():
            parameter.name = name  # MS-25: what a Cell is called inside its list is part of the name
        self.residual_width = residual_width(config.d_model)
        self.final_norm = make_norm(config, learned_scale=config.final_norm_scale)
        self.look_up = shard(ops.Gather(), ("vocab", "embed"), ("tokens",))
        self.activation = ToCompute(("tokens", "embed"))
        self.layers_of, self.dropout = Layers(config.layers + 1), Dropout()
        self.scale = shard(ops.Mul(), ("tokens", "embed"), ())
        self.unembed = shard(ops.MatMul(transpose_b=True), ("tokens", "embed"), ("vocab", "embed"))
        self.real_rows = shard(ops.StridedSlice(), ("tokens", "one"))
        self.reshape = ops.Reshape()
        self.logit_scale = config.d_model**-0.5 if config.scaled_logits else 1.0
        self.vocab_size = config.vocab_size
        self.vocab_is_whole = config.padded_vocab == config.vocab_size and current_layout().shards("vocab") == 1

    def construct(self, token_ids: Tensor) -> Tensor:
        batch, length = token_ids.shape
        return self.reshape(self.real(self.logits(token_ids)), (batch, length, self.vocab_size))

    def logits(self, token_ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits of all rows of the table, padding included: int32 [B, S] to float32 [T, V]. What the loss works on.

        ``keep`` [B, 1 + layers, D] is what dropout leaves behind the embedding and behind each block; None: all.
        """
        batch = token_ids.shape[0]
        if keep is None:
            x = self.embed(token_ids)
            for block in self.blocks:
                x = block(x, batch)
        else:
            kept = self.layers_of(keep)
            x = self.embed(token_ids, kept[0])
            for i in range(len(self.blocks)):
                x = self.blocks[i](x, batch, kept[i + 1])
        return self.read_out(x)

    def embed(self, token_ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """Token ids to what the first block takes: int32 [B, S] to [T, D], or to the same in rows of another width."""
        x = self.activation(self.look_up(self.embedding, self.reshape(token_ids, (-1,)), 0))
        if keep is not None:
            x = self.dropout(x, keep)
        return self.reshape(x, (-1, self.residual_width))

    def read_out(self, x: Tensor) -> Tensor:
        """What the last block gives to logits: float32 [T, V]."""
        return self.unembed(self.final(x), self.embedding)

    def final(self, x: Tensor) -> Tensor:
        """What the last block gives to what is multiplied with the table: float32 [T, D]."""
        return self.scale(self.final_norm(self.reshape(x, (-1, self.config.d_model))), self.logit_scale)

    def real(self, logits: Tensor) -> Tensor:
        """Leaves the padding of the vocabulary out, and puts together what is cut: [T, V] to [T, vocab_size]."""
        if self.vocab_is_whole:
            return logits
        return self.real_rows(logits, (0, 0), (logits.shape[0], self.vocab_size), (1, 1))

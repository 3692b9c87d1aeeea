"""PaLM: token ids to logits (arXiv 2204.02311, section 2)."""

from __future__ import annotations

from mindspore import Parameter, Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.dropout import Dropout, SplitMask
from mindspore_palm.model.factory import make_block
from mindspore_palm.model.fused import FusedLookup
from mindspore_palm.model.initial import initial_parameter
from mindspore_palm.model.norm import make_norm
from mindspore_palm.model.position import LearnedPositions
from mindspore_palm.model.precision import ToCompute
from mindspore_palm.model.residual import Residual
from mindspore_palm.model.weights import POSITIONS, weights
from mindspore_palm.parallel import fused
from mindspore_palm.parallel.axes import current_layout, shard
from mindspore_palm.parallel.cells import make_lookup
from mindspore_palm.parallel.context import use_graphs
from mindspore_palm.parallel.stages import on_stage_of


class PaLM(nn.Cell):
    """The network: ``PaLM(config)(token_ids)`` takes int32 [B, S] to float32 logits [B, S, vocab_size].

    ``weights.py`` lists the names of the weights, which are those of the checkpoint format.

    Args:
        config: the sizes.
        seed: decides the initial weights, together with their names.
    """

    def __init__(self, config: PaLMConfig, seed: int = 0) -> None:
        super().__init__(auto_prefix=False)
        use_graphs()
        self.config = config
        parameters = {weight.name: initial_parameter(weight, seed) for weight in weights(config)}
        self.embed = on_stage_of(0, Embed(config, parameters["embedding"], parameters.get(POSITIONS)))
        self.blocks = nn.CellList(
            [on_stage_of(i, make_block(config, _block_parameters(parameters, i))) for i in range(config.layers)],
            auto_prefix=False,
        )
        self.unembed = on_stage_of(config.layers - 1, Unembed(config, parameters.get("final_norm.scale")))
        self.split_mask = SplitMask(1 + config.layers)
        self.drop_vocab_padding = DropVocabPadding(config)
        self.reshape, self.vocab_size = ops.Reshape(), config.vocab_size

    def construct(self, token_ids: Tensor) -> Tensor:
        batch, length = token_ids.shape
        return self.reshape(self.drop_vocab_padding(self.logits(token_ids)), (batch, length, self.vocab_size))

    def logits(self, token_ids: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        """Logits of all rows of the table, padding included, as the loss takes them: int32 [B, S] to float32 [T, V].

        ``dropout_mask`` [B, 1 + layers, D] is applied after the embedding and after each block; None for no dropout.
        """
        return self.unembed(*self.stream(token_ids, dropout_mask))

    def stream(self, token_ids: Tensor, dropout_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The residual stream after the last block, and the table: the arguments of ``unembed``."""
        masks = self.split_mask(dropout_mask)
        x, table_VD = self.embed(token_ids, masks[0])
        for i in range(len(self.blocks)):
            x = self.blocks[i](x, token_ids.shape[0], masks[i + 1])
        return x, table_VD

    @property
    def embedding(self) -> Parameter:
        """The table: float32 [V, D]."""
        return self.embed.table

    def block_weights(self, i: int) -> dict[str, Parameter]:
        """Parameters of block i, by their names within the block, such as ``q_wi`` and ``norm.scale``."""
        return _block_parameters({parameter.name: parameter for parameter in self.blocks[i].get_parameters()}, i)


class Embed(nn.Cell):
    """Rows of the table, unscaled, and learned positions if there are any: int32 [B, S] to the residual stream.

    Returns the table as well, which the logits are computed with. In a pipeline, it travels from the first stage to the
    last one so, and its gradient back. Merely sharing the Parameter, the last stage would wait for it forever.
    """

    def __init__(self, config: PaLMConfig, embedding: Parameter, positions: Parameter | None = None) -> None:
        super().__init__(auto_prefix=False)
        self.table, self.lookup = embedding, FusedLookup() if fused.usable() else TableLookup()
        self.add_positions = None if positions is None else LearnedPositions(positions)
        self.to_compute, self.dropout = ToCompute(("tokens", "embed")), Dropout()
        self.residual, self.reshape = Residual(config.d_model), ops.Reshape()

    def construct(
        self, token_ids: Tensor, dropout_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x_TD, table_VD = self.lookup(self.table, self.reshape(token_ids, (-1,)))
        if self.add_positions is not None:
            x_TD = self.add_positions(x_TD, token_ids.shape[0], position_ids)
        return self.residual.write(self.dropout(self.to_compute(x_TD), dropout_mask)), table_VD


class TableLookup(nn.Cell):
    """Rows of a table, and the table: [V, D] and int32 [T] to [T, D] and [V, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.lookup = make_lookup()

    def construct(self, table_VD: Tensor, ids_T: Tensor) -> tuple[Tensor, Tensor]:
        return self.lookup(table_VD, ids_T), table_VD


class Unembed(nn.Cell):
    """Logits ``norm(x) / sqrt(D) E^T``: the residual stream and the table [V, D] to float32 [T, V]."""

    def __init__(self, config: PaLMConfig, norm_scale: Parameter | None) -> None:
        super().__init__(auto_prefix=False)
        self.norm, self.residual = make_norm(config, norm_scale), Residual(config.d_model)
        self.times_scale, self.logit_scale = shard(ops.Mul(), ("tokens", "embed"), ()), logit_scale(config)
        self.matmul = shard(ops.MatMul(transpose_b=True), ("tokens", "embed"), ("vocab", "embed"))

    def construct(self, x: Tensor, table_VD: Tensor) -> Tensor:
        y_TD = self.norm(self.residual.read(x))
        return self.matmul(self.times_scale(y_TD, self.logit_scale), table_VD)


class DropVocabPadding(nn.Cell):
    """Drops the logits of rows that pad the table, and unshards the vocabulary: [T, V] to [T, vocab_size]."""

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self.is_identity = config.padded_vocab == config.vocab_size and current_layout().shards("vocab") == 1
        self.slice = shard(ops.StridedSlice(), ("tokens", "one"))

    def construct(self, logits_TV: Tensor) -> Tensor:
        if self.is_identity:
            return logits_TV
        return self.slice(logits_TV, (0, 0), (logits_TV.shape[0], self.vocab_size), (1, 1))


def logit_scale(config: PaLMConfig) -> float:
    """Factor of the logits: 1/sqrt(D), or 1 in an ablation."""
    return config.d_model**-0.5 if config.scaled_logits else 1.0


def _block_parameters(parameters: dict[str, Parameter], i: int) -> dict[str, Parameter]:
    prefix = f"blocks.{i}."
    return {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}

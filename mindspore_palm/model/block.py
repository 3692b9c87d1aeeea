"""PaLM's parallel block: attention and mlp read the same norm, and their sum is added (section 2 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping

from mindspore import Parameter, Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.attention import Positions
from mindspore_palm.model.dropout import Dropout
from mindspore_palm.model.norm import make_norm
from mindspore_palm.model.precision import ToCompute
from mindspore_palm.model.projection import ProjectIn, ProjectKv, ProjectOut
from mindspore_palm.model.residual import Residual
from mindspore_palm.parallel.axes import shard


class SwiGLU(nn.Cell):
    """``swish(gate) * up``, swish(x) = x * sigmoid(x) (arXiv 2002.05202): two [T, F] to [T, F]."""

    def __init__(self) -> None:
        super().__init__()
        columns = ("tokens", "heads")
        self.sigmoid = shard(ops.Sigmoid(), columns)
        self.times = shard(ops.Mul(), columns, columns)

    def construct(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        return self.times(self.times(gate_TF, self.sigmoid(gate_TF)), up_TF)


class Block(nn.Cell):
    """``y = x + MLP(norm(x)) + Attention(norm(x))``, from residual stream to residual stream.

    Args:
        config: the sizes.
        weights: the block's Parameters: ``q_wi``, ``kv``, ``o_wo`` and ``norm.scale``.
        attention: takes q [T, H*K], k and v [T, K], and positions to [T, H*K].

    ``construct(x, positions, dropout_mask)`` passes ``positions`` to ``attention``. ``dropout_mask`` [B, 1, D] is None
    except in fine-tuning.
    """

    def __init__(self, config: PaLMConfig, weights: Mapping[str, Parameter], attention: nn.Cell) -> None:
        super().__init__(auto_prefix=False)  # MS-25: keeps the names of weights
        # Projections first: the order of Cells is the order of weights, in which sums over all weights are taken.
        self.project_in = ProjectIn(config, weights["q_wi"])
        self.project_kv = ProjectKv(weights["kv"])
        self.project_out = ProjectOut(config, weights["o_wo"])
        self.norm = make_norm(config, weights["norm.scale"])
        self.to_compute = ToCompute(("tokens", "embed"))
        self.attention, self.swiglu, self.dropout = attention, SwiGLU(), Dropout()
        self.residual = Residual(config.d_model)

    def construct(self, x: Tensor, positions: Positions, dropout_mask: Tensor | None = None) -> Tensor:
        y_TD = self.to_compute(self.norm(self.residual.read(x)))
        q_THK, gate_TF, up_TF = self.project_in(y_TD)
        k_TK, v_TK = self.project_kv(y_TD)
        attended_THK = self.attention(q_THK, k_TK, v_TK, positions)
        out_TD = self.project_out(attended_THK, self.swiglu(gate_TF, up_TF))
        return self.residual.add(x, self.dropout(out_TD, dropout_mask), after=y_TD)

"""PaLM's parallel block: attention and mlp side by side behind one norm (section 2 of the paper)."""

from __future__ import annotations

from mindspore import Parameter, Tensor, nn, ops

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.dropout import Dropout
from mindspore_palm.model.norm import make_norm
from mindspore_palm.model.precision import ToCompute
from mindspore_palm.model.projection import ProjectIn, ProjectOut
from mindspore_palm.parallel.axes import shard
from mindspore_palm.parallel.recompute import residual_width


class SwiGLU(nn.Cell):
    """``swish(gate) * up``, swish(x) = x * sigmoid(x) (arXiv 2002.05202): two [T, F] to [T, F]."""

    def __init__(self) -> None:
        super().__init__()
        x = ("tokens", "heads")
        self.sigmoid = shard(ops.Sigmoid(), x)
        self.times = shard(ops.Mul(), x, x)

    def construct(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.times(self.times(gate, self.sigmoid(gate)), up)


class Block(nn.Cell):
    """``y = x + MLP(norm(x)) + Attention(norm(x))``: [T, D] to [T, D], or to the same in rows of ``residual_width``.

    Args:
        config: the sizes.
        weights: the block's Parameters ``q_wi``, ``kv`` and ``o_wo``.
        attention: takes q, k, v and ``where`` the rows stand: how many sequences they are, or in a cache.

    ``keep`` [B, 1, D] is what dropout leaves; None, as everywhere but in fine-tuning, is no dropout and no op.
    """

    def __init__(self, config: PaLMConfig, weights: dict[str, Parameter], attention: nn.Cell) -> None:
        super().__init__()
        rows = ("tokens", "embed")
        self.q_wi, self.kv, self.o_wo = weights["q_wi"], weights["kv"], weights["o_wo"]
        self.norm = make_norm(config)
        self.project_in, self.project_out = ProjectIn(config), ProjectOut(config)
        self.project_kv = shard(ops.MatMul(), rows, ("embed", "per_head"))
        self.split_kv = shard(ops.Split(-1, 2), ("tokens", "per_head"))
        self.attention = attention
        self.activation, self.kernel = ToCompute(rows), ToCompute(("embed", "per_head"))
        self.swiglu, self.dropout = SwiGLU(), Dropout()
        self.lora: nn.Cell | None = None  # model/lora.py puts it there
        self.add = shard(ops.Add(), rows, rows)
        self.d_model, self.width, self.reshape = config.d_model, residual_width(config.d_model), ops.Reshape()
        self.depend = ops.Depend()

    def construct(self, x: Tensor, where: int | tuple[Tensor, ...], keep: Tensor | None = None) -> Tensor:
        q_wi, kv, o_wo = self.q_wi, self.kv, self.o_wo
        if self.lora is not None:
            q_wi, kv, o_wo = self.lora(q_wi, kv, o_wo)
        y = self.activation(self.norm(self.reshape(x, (-1, self.d_model))))
        q, gate, up = self.project_in(y, q_wi)
        k, v = self.split_kv(self.project_kv(y, self.kernel(kv)))
        out = self.project_out(self.attention(q, k, v, where), self.swiglu(gate, up), o_wo)
        if keep is not None:
            out = self.dropout(out, keep)
        # MS-06, the detour by Depend: MindSpore marks what it keeps of x in slices by x's first user, and were that
        # this sum, it would take this block's own result for kept already, and slice every other block's only
        return self.add(self.depend(x, y), self.reshape(out, (-1, self.width)))

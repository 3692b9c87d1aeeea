"""The fused per-head kernels of PaLM's block (layout of Google's inference code and flaxformer).

``q_wi`` [D, H*(K + n*F/H)] holds for every head its columns of q, gate and up; ``o_wo`` [H*(K + F/H), D] its rows of
attention and mlp. Whole heads are together, so that cutting over heads never cuts a slice, and a block needs one
all-reduce.

Either the kernel is taken apart or the activation is. A kernel has D rows, an activation B*S: on one device, what moves
less memory is done, the former in training, the latter in decoding. On several, a kernel goes into one product as it
lies, sharded by rows and columns, and that product's output is taken apart: one gathering of each kernel, one
all-reduce of each block. What is taken apart is split, not sliced (MS-40).
"""

from __future__ import annotations

from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops.auto_generate import SplitWithSize

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.precision import ToCompute
from mindspore_palm.parallel.axes import current_layout, shard


def sizes_in(config: PaLMConfig) -> tuple[int, ...]:
    """Columns of one head in ``q_wi``: q, then each input of the mlp."""
    return (config.head_dim, *(config.mlp_per_head for _ in range(config.mlp_inputs)))


def sizes_out(config: PaLMConfig) -> tuple[int, int]:
    """Rows of one head in ``o_wo``: attention, then mlp."""
    return config.head_dim, config.mlp_per_head


class ProjectIn(nn.Cell):
    """``y W`` for W = [q | gate | up] per head: [T, D] to [T, H*K], and [T, F] for each input of the mlp."""

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.sizes = sizes_in(config)
        self.one_device = current_layout().devices == 1
        self.matmul = shard(ops.MatMul(), ("tokens", "embed"), ("embed", "heads"))
        self.kernel = ToCompute(("embed", "heads"))
        self.split_kernel = shard(SplitWithSize(), ("embed", "heads", "per_head"))
        self.split = shard(SplitWithSize(), ("tokens", "heads", "per_head"))
        self.reshape = ops.Reshape()

    def construct(self, y: Tensor, q_wi: Parameter) -> tuple[Tensor, ...]:
        out, q_wi = (), self.kernel(q_wi)
        if self.one_device and y.shape[0] >= q_wi.shape[0]:
            for kernel in self.split_kernel(self.reshape(q_wi, (q_wi.shape[0], self.heads, -1)), self.sizes, -1):
                out += (self.matmul(y, self.reshape(kernel, (q_wi.shape[0], -1))),)
        else:
            fused = self.reshape(self.matmul(y, q_wi), (y.shape[0], self.heads, -1))
            for part in self.split(fused, self.sizes, -1):
                out += (self.reshape(part, (y.shape[0], -1)),)
        return out


class ProjectOut(nn.Cell):
    """``[attention | mlp] W`` per head: [T, H*K] and [T, F] to [T, D], summed."""

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.sizes = sizes_out(config)
        self.one_device = current_layout().devices == 1
        by_head = ("tokens", "heads", "per_head")
        self.matmul = shard(ops.MatMul(), ("tokens", "heads"), ("heads", "embed"))
        self.kernel = ToCompute(("heads", "embed"))
        self.split_kernel = shard(SplitWithSize(), ("heads", "per_head", "embed"))
        self.join = shard(ops.Concat(-1), by_head, by_head)
        self.add = shard(ops.Add(), ("tokens", "embed"), ("tokens", "embed"))
        self.reshape = ops.Reshape()

    def construct(self, attention: Tensor, mlp: Tensor, o_wo: Parameter) -> Tensor:
        d_model, o_wo = o_wo.shape[1], self.kernel(o_wo)
        if self.one_device and attention.shape[0] >= d_model:
            w_o, wo = self.split_kernel(self.reshape(o_wo, (self.heads, -1, d_model)), self.sizes, 1)
            attention = self.matmul(attention, self.reshape(w_o, (-1, d_model)))
            return self.add(attention, self.matmul(mlp, self.reshape(wo, (-1, d_model))))
        tokens = attention.shape[0]
        by_head = (tokens, self.heads, -1)
        joined = self.join((self.reshape(attention, by_head), self.reshape(mlp, by_head)))
        return self.matmul(self.reshape(joined, (tokens, -1)), o_wo)

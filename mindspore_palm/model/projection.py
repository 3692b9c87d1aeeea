"""The fused per-head kernels of PaLM's block (layout of Google's inference code and flaxformer).

``q_wi`` [D, H*(K + n*F/H)] holds, head by head, the columns of q and of the mlp's n inputs; ``o_wo`` [H*(K + F/H), D]
the rows of attention and mlp. Each head is contiguous, so sharding over heads never splits one, and a block needs one
all-reduce.
"""

from __future__ import annotations

from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops.auto_generate import SplitWithSize

from mindspore_palm.config import PaLMConfig
from mindspore_palm.model.precision import ToCompute
from mindspore_palm.model.weights import sizes_in, sizes_out
from mindspore_palm.parallel.axes import current_layout, shard


class Kernel(nn.Cell):
    """The kernel of a projection: ``construct()`` returns W. LoRA replaces it with ``lora.AdaptedKernel``."""

    def __init__(self, weight: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weight

    def construct(self) -> Tensor:
        return self.weight


class ProjectIn(nn.Cell):
    """``y [W_q | W_gate | W_up]``: [T, D] to q [T, H*K] and [T, F] for each input of the mlp."""

    def __init__(self, config: PaLMConfig, q_wi: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.kernel, self.to_compute = Kernel(q_wi), ToCompute(("embed", "heads"))
        self.matmul = MatmulThenSplit(config)

    def construct(self, y_TD: Tensor) -> tuple[Tensor, ...]:
        return self.matmul(y_TD, self.to_compute(self.kernel()))


class ProjectKv(nn.Cell):
    """``y [W_k | W_v]``: [T, D] to k and v [T, K]."""

    columns = "per_head"
    """Logical axis of the columns of k and v."""

    def __init__(self, kv: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.kernel, self.to_compute = Kernel(kv), ToCompute(("embed", self.columns))
        self.matmul = shard(ops.MatMul(), ("tokens", "embed"), ("embed", self.columns))
        self.split = shard(ops.Split(-1, 2), ("tokens", "per_head"))

    def construct(self, y_TD: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.matmul(y_TD, self.to_compute(self.kernel())))


class ProjectOut(nn.Cell):
    """``attended W_o + mlp W``: [T, H*K] and [T, F] to [T, D]."""

    def __init__(self, config: PaLMConfig, o_wo: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.kernel, self.to_compute = Kernel(o_wo), ToCompute(("heads", "embed"))
        self.matmul = JoinThenMatmul(config)

    def construct(self, attended_THK: Tensor, mlp_TF: Tensor) -> Tensor:
        return self.matmul(attended_THK, mlp_TF, self.to_compute(self.kernel()))


class MatmulThenSplit(nn.Cell):
    """``y W`` for the fused ``q_wi``, split into its parts by Split, not by slices (MS-40).

    Either the kernel is split or the result is. The kernel has D rows and the result T. On one device, the smaller one
    is split: the kernel in training, the result in decoding. On several devices, the kernel is sharded by rows and
    columns, so the result is split: one all-gather of the kernel.
    """

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.heads, self.sizes = config.heads, sizes_in(config)
        self.one_device = current_layout().devices == 1
        self.matmul = shard(ops.MatMul(), ("tokens", "embed"), ("embed", "heads"))
        self.split_kernel = shard(SplitWithSize(), ("embed", "heads", "per_head"))
        self.split_result = shard(SplitWithSize(), ("tokens", "heads", "per_head"))
        self.reshape = ops.Reshape()

    def construct(self, y_TD: Tensor, kernel: Tensor) -> tuple[Tensor, ...]:
        tokens, d_model = y_TD.shape
        parts = ()
        if self.one_device and tokens >= d_model:
            for part in self.split_kernel(self.reshape(kernel, (d_model, self.heads, -1)), self.sizes, -1):
                parts += (self.matmul(y_TD, self.reshape(part, (d_model, -1))),)
        else:
            fused = self.reshape(self.matmul(y_TD, kernel), (tokens, self.heads, -1))
            for part in self.split_result(fused, self.sizes, -1):
                parts += (self.reshape(part, (tokens, -1)),)
        return parts


class JoinThenMatmul(nn.Cell):
    """``[attended | mlp] W`` for the fused ``o_wo``: the counterpart of ``MatmulThenSplit``, with one all-reduce."""

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.heads, self.sizes = config.heads, sizes_out(config)
        self.one_device = current_layout().devices == 1
        by_head = ("tokens", "heads", "per_head")
        self.matmul = shard(ops.MatMul(), ("tokens", "heads"), ("heads", "embed"))
        self.split_kernel = shard(SplitWithSize(), ("heads", "per_head", "embed"))
        self.join = shard(ops.Concat(-1), by_head, by_head)
        self.add = shard(ops.Add(), ("tokens", "embed"), ("tokens", "embed"))
        self.reshape = ops.Reshape()

    def construct(self, attended_THK: Tensor, mlp_TF: Tensor, kernel: Tensor) -> Tensor:
        tokens, d_model = attended_THK.shape[0], kernel.shape[1]
        if self.one_device and tokens >= d_model:
            w_o, w_mlp = self.split_kernel(self.reshape(kernel, (self.heads, -1, d_model)), self.sizes, 1)
            attended_TD = self.matmul(attended_THK, self.reshape(w_o, (-1, d_model)))
            return self.add(attended_TD, self.matmul(mlp_TF, self.reshape(w_mlp, (-1, d_model))))
        by_head = (tokens, self.heads, -1)
        joined = self.join((self.reshape(attended_THK, by_head), self.reshape(mlp_TF, by_head)))
        return self.matmul(self.reshape(joined, (tokens, -1)), kernel)

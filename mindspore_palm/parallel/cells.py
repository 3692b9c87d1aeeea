"""Small Cells whose ops depend on the layout, so that no equation of the model has to."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindspore_palm.parallel.axes import Axes, current_layout, shard


class Square(nn.Cell):
    """``x * x``.

    On one device this is a Mul, because the gradient of Square is slow on CPU (MS-38). On several devices it is a
    Square: the gradient of x * x is x * g + x * g, and where x comes from an all-reduce (that of the embedding),
    MindSpore mistakes this sum for weight decay and rewrites it (AdjustAllReduceMulAdd): a silently wrong gradient
    (MS-05).
    """

    def __init__(self, axes: Axes) -> None:
        super().__init__()
        self.one_device = current_layout().devices == 1
        self.times, self.square = shard(ops.Mul(), axes, axes), shard(ops.Square(), axes)

    def construct(self, x: Tensor) -> Tensor:
        return self.times(x, x) if self.one_device else self.square(x)


class RowMax(nn.Cell):
    """Maximum of each row: [T, V] to [T, 1].

    A sharded vocabulary needs ReduceMax. An unsharded one takes ArgMaxWithValue, 5 times faster on CPU (MS-35).
    """

    def __init__(self, axes: Axes) -> None:
        super().__init__()
        self.sharded = current_layout().shards(axes[-1]) > 1
        maximum = ops.ReduceMax(keep_dims=True) if self.sharded else ops.ArgMaxWithValue(axis=-1, keep_dims=True)
        self.maximum = shard(maximum, axes)

    def construct(self, x: Tensor) -> Tensor:
        return self.maximum(x, -1) if self.sharded else self.maximum(x)[1]


class Softmax(nn.Cell):
    """Softmax over the last axis of [B, H*Q, C].

    An unsharded tensor is flattened to a matrix, which makes the reduction of the gradient 17 times faster on CPU
    (MS-36). A tensor that is sharded along two axes could not be flattened without communication.
    """

    def __init__(self) -> None:
        super().__init__()
        layout = current_layout()
        self.flatten = layout.shards("batch") * layout.shards("heads") == 1
        axes = ("length", "context") if self.flatten else ("batch", "heads", "context")
        self.softmax = shard(ops.Softmax(-1), axes)
        self.reshape = ops.Reshape()

    def construct(self, scores: Tensor) -> Tensor:
        if self.flatten:
            rows = self.reshape(scores, (-1, scores.shape[-1]))
            return self.reshape(self.softmax(rows), scores.shape)
        return self.softmax(scores)


class Lookup(nn.Cell):
    """Rows of a table: float32 [V, D] and int32 [T] to float32 [T, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.gather = shard(ops.Gather(), ("vocab", "embed"), ("tokens",))

    def construct(self, table_VD: Tensor, ids_T: Tensor) -> Tensor:
        return self.gather(table_VD, ids_T, 0)


class RepeatableLookup(Lookup):
    """A lookup on a GPU, whose gradient is a matmul with one-hot ids.

    MS-56: there, the gradient of Gather adds the rows of a token in another order each time, so two runs of the same
    step differ in bits. The matmul costs half as much as that of the logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.one_hot, self.matmul = ops.OneHot(), ops.MatMul(transpose_a=True)
        self.on, self.off, self.zeros_like = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32), ops.ZerosLike()

    def bprop(self, table_VD: Tensor, ids_T: Tensor, rows_TD: Tensor, d_rows_TD: Tensor) -> tuple[Tensor, Tensor]:
        one_hot_TV = self.one_hot(ids_T, table_VD.shape[0], self.on, self.off)
        return self.matmul(one_hot_TV, d_rows_TD), self.zeros_like(ids_T)


def make_lookup() -> Lookup:
    """The lookup for the device of the current layout."""
    layout = current_layout()
    return RepeatableLookup() if layout.target == "GPU" and layout.devices == 1 else Lookup()

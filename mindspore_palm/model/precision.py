"""Mixed precision: matmuls inside blocks use the compute dtype; everything that needs precision stays float32.

Weights, norms, rotation, softmax, logits and loss are float32. Kernels, activations and matmuls inside blocks have the
layout's ``compute_dtype``. If that is float32, these Cells do nothing.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindspore_palm.parallel.axes import Axes, current_layout, shard

MS_DTYPES = {"float32": ms.float32, "bfloat16": ms.bfloat16, "float16": ms.float16}


class ToCompute(nn.Cell):
    """Casts float32 to the compute dtype.

    Args:
        axes: logical axes of the input.
    """

    def __init__(self, axes: Axes) -> None:
        super().__init__()
        self.dtype = MS_DTYPES[current_layout().compute_dtype]
        self.mixed = self.dtype != ms.float32
        self.cast_op = shard(ops.Cast(), axes)

    def construct(self, x: Tensor) -> Tensor:
        return self.cast_op(x, self.dtype) if self.mixed else x


class ToFloat32(nn.Cell):
    """Casts the compute dtype to float32.

    Args:
        axes: logical axes of the input.
    """

    def __init__(self, axes: Axes) -> None:
        super().__init__()
        self.mixed = current_layout().compute_dtype != "float32"
        self.cast_op = shard(ops.Cast(), axes)

    def construct(self, x: Tensor) -> Tensor:
        return self.cast_op(x, ms.float32) if self.mixed else x

"""The norm of all gradients together, for clipping and for finding what is not finite."""

from __future__ import annotations

from mindspore import Tensor, nn, ops


class GlobalNorm(nn.Cell):
    """``sqrt(sum over tensors of sum(g^2))``: a tuple of float32 to float32 []; not finite if any entry is not."""

    def __init__(self) -> None:
        super().__init__()
        self.square, self.sum, self.reshape = ops.Square(), ops.ReduceSum(), ops.Reshape()
        self.sqrt = ops.Sqrt()

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        total = 0.0
        for gradient in gradients:
            total += self.sum(self.square(gradient))
        return self.sqrt(total)


def clip_factor(norm: Tensor, clip_norm: float) -> Tensor:
    """What gradients are multiplied with so that their global norm is at most ``clip_norm``: float32 []."""
    return ops.Minimum()(clip_norm / norm, 1.0)

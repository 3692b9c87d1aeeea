"""One of two workers that use MindSpore's own collectives on CPU. Writes which of them work into OUT/RANK.txt."""

from __future__ import annotations

import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import get_rank, init

BROUGHT = np.arange(4, dtype=np.float32)


class Collective(nn.Cell):
    def __init__(self, op):
        super().__init__()
        self.op = op

    def construct(self, x):
        return self.op(x)


def works(make, expected) -> str:
    """Whether an op gives what it should, of workers that bring BROUGHT times their rank + 1."""
    try:
        got = Collective(make())(Tensor(BROUGHT * (get_rank() + 1))).asnumpy()
    except (RuntimeError, TypeError, ValueError) as error:
        print(error)
        return "fails"
    return "works" if np.array_equal(got, expected) else "fails"


def main(out: Path) -> None:
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
    init()
    half = slice(2 * get_rank(), 2 * get_rank() + 2)
    seen = [
        f"sum {works(ops.AllReduce, 3 * BROUGHT)}",
        f"max {works(lambda: ops.AllReduce('max'), 2 * BROUGHT)}",
        f"reduce-scatter {works(ops.ReduceScatter, 3 * BROUGHT[half])}",
    ]
    (out / f"{get_rank()}.txt").write_text("\n".join(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Calls of a compiled network do not walk through its Cells."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor
from visits import CountsVisits

from mindspore_palm.parallel.top_cell import TopCell


class Net(TopCell):
    def __init__(self):
        super().__init__()
        self.leaf = CountsVisits()

    def construct(self, x):
        return self.leaf(x)


def test_cells_inside_are_visited_once_for_each_compilation(device):
    net = Net()
    for size, visits in ((2, 1), (2, 1), (3, 2), (2, 2), (3, 2)):
        found = net(Tensor(np.ones(size, np.float32))).asnumpy()
        assert found.tolist() == [2.0] * size and net.leaf.visits == visits

"""Canary: what MindSpore's optimizer ops do that the package works around."""

from __future__ import annotations

import numpy as np
from canaries.register import still
from mindspore import Parameter, Tensor, nn, ops


def test_ms_29_adam_adds_epsilon_before_it_corrects_the_second_moment(device):
    """First step of Adam on a gradient of one, with an epsilon of one: p = -m/(sqrt(v) + 1) of corrected m = v = 1."""

    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.p, self.m, self.v = (Parameter(Tensor(np.zeros(1, np.float32)), name=name) for name in "pmv")
            self.adam = ops.Adam()

        def construct(self, gradient):
            return self.adam(self.p, self.m, self.v, 0.9, 0.999, 1.0, 0.9, 0.999, 1.0, gradient)

    net = Net()
    net(Tensor(np.ones(1, np.float32)))
    seen, paper = float(net.p.asnumpy()[0]), -0.5
    still("MS-29", abs(seen - paper) > 0.1, seen)

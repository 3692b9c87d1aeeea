"""Parts of a pipelined step that need no workers."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, mutable

from mindspore_palm.train.unrolled import TakeSums


@pytest.mark.parametrize("value", [3.0, np.nan, np.inf])
def test_sums_of_gradients_are_taken_and_cleared_whatever_they_are(device, value):
    """A product with zero, as in MindSpore's own reducer, would keep NaN for all later steps."""
    weight = Parameter(Tensor(np.ones((2, 3), np.float32)), name="w")
    take = TakeSums(ParameterTuple([weight]))
    (total,) = take.sums
    assert total.name == "accu_grads.w"  # the name under which MindSpore looks for it
    total.set_data(Tensor(np.full((2, 3), value, np.float32)))
    (taken,) = take(mutable((Tensor(np.zeros((2, 3), np.float32)),)))
    np.testing.assert_array_equal(taken.asnumpy(), np.full((2, 3), value, np.float32))
    np.testing.assert_array_equal(total.asnumpy(), np.zeros((2, 3), np.float32))

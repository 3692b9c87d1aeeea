"""Small Cells that depend on the layout compute the same as what they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.parallel.axes import Layout, Mesh, layout
from mindspore_palm.parallel.cells import Lookup, RepeatableLookup

TOKENS, ROWS, FEATURES = 40, 7, 5


@pytest.mark.parametrize("kind", [Lookup, RepeatableLookup])
def test_a_lookup_and_its_gradient_are_those_of_numpy(device, rng, kind):
    from mindspore import Tensor, ops

    table = rng.standard_normal((ROWS, FEATURES)).astype(np.float32)
    ids = rng.integers(0, ROWS - 1, TOKENS).astype(np.int32)  # the last row is never read
    d_rows = rng.standard_normal((TOKENS, FEATURES)).astype(np.float32)
    lookup = kind()
    assert np.array_equal(lookup(Tensor(table), Tensor(ids)).asnumpy(), table[ids])
    found = ops.GradOperation(sens_param=True)(lookup)(Tensor(table), Tensor(ids), Tensor(d_rows)).asnumpy()
    expected = np.zeros(table.shape)
    np.add.at(expected, ids, d_rows)
    assert np.abs(found - expected).max() < 1e-5  # sums of 40 numbers near 1
    assert not found[-1].any()


@pytest.mark.parametrize(("target", "kind"), [("CPU", Lookup), ("Ascend", Lookup), ("GPU", RepeatableLookup)])
def test_a_gpu_has_the_lookup_whose_gradient_has_the_same_bits_each_time(target, kind):
    config = PaLMConfig(layers=1, d_model=8, heads=2, head_dim=4, d_ff=16, vocab_size=16)
    with layout(Layout(target=target)):
        assert type(PaLM(config).embed.lookup.lookup) is kind


def test_a_mesh_shards_gather_itself():
    config = PaLMConfig(layers=1, d_model=8, heads=2, head_dim=4, d_ff=16, vocab_size=16)
    with layout(Layout(mesh=Mesh(1, 1, 2), target="GPU")):
        assert type(PaLM(config).embed.lookup.lookup) is Lookup

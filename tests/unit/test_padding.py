"""The padding of the vocabulary may change when a run resumes; nothing else of a tensor may."""

from __future__ import annotations

import numpy as np
import pytest

from mindspore_palm.checkpoint.padding import with_padding

ROWS = np.arange(15, dtype=np.float32).reshape(5, 3) + 1


class InMemory:
    shape, dtype = ROWS.shape, ROWS.dtype

    def read(self, window=None):
        return ROWS[window] if window else ROWS


@pytest.mark.parametrize("rows", [3, 4, 5, 6, 8])
@pytest.mark.parametrize("name", ["embedding", "m.embedding"])
def test_padding_rows_are_removed_or_zero(name, rows):
    expected = np.zeros((rows, 3), np.float32)
    expected[: min(rows, 5)] = ROWS[:rows]
    tensor = with_padding(name, InMemory(), (rows, 3))
    assert tensor.shape == (rows, 3)
    np.testing.assert_array_equal(tensor.read(), expected)
    for first in range(rows):
        for stop in range(first + 1, rows + 1):
            window = (slice(first, stop), slice(1, 3))
            np.testing.assert_array_equal(tensor.read(window), expected[window])
    if rows != 5:
        np.testing.assert_array_equal(np.concatenate(list(tensor.blocks())), expected)


@pytest.mark.parametrize(("name", "shape"), [("blocks.0.kv", (8, 3)), ("embedding", (5, 4)), ("embedding", (5,))])
def test_other_tensors_stay_unchanged(name, shape):
    assert with_padding(name, InMemory(), shape).shape == ROWS.shape

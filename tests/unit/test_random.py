"""Pseudo-random numbers: the permutation is a uniform bijection for every size and key, and no draw ever changes."""

import numpy as np
import pytest

from mindspore_palm.random import key64, permute, philox

SIZES = sorted({1, 2, 3, 5, 1000, *(2**k + d for k in range(2, 15) for d in (-1, 0, 1))})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1, -5])
def test_every_element_once(size, key):
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


def test_one_index_gives_the_same_as_an_array():
    rows = permute(np.arange(1000), 1000, 7)
    assert [permute(i, 1000, 7) for i in range(1000)] == rows.tolist()
    assert type(permute(3, 1000, 7)) is int
    assert rows.dtype == np.int64
    assert permute(np.arange(6).reshape(2, 3), 6, 1).shape == (2, 3)
    assert permute(np.zeros(0, np.int64), 6, 1).shape == (0,)


FIXED = [2, 9, 1, 5, 3, 7, 0, 4, 8, 6]


def test_the_order_is_fixed_for_all_time():
    """A resumed run must get the order that it started with, in every later version too."""
    assert permute(np.arange(10), 10, 42).tolist() == FIXED


def test_keys_and_streams_are_fixed_for_all_time():
    """Runs of every version draw the same weights, dropout masks, splits and orders."""
    assert [key64(name) for name in ("", "3 0", "a é")] == [
        16476032584258269876,
        8612205006919924097,
        7807049549746761847,
    ]
    assert philox("0:embedding").random_raw(2).tolist() == [13247270382336032373, 16112420893867164730]
    assert philox("a é").random_raw(2).tolist() == [16491921266468242136, 14128083518742532662]


def test_keys_give_different_orders():
    orders = {tuple(permute(np.arange(50), 50, key)) for key in range(200)}
    assert len(orders) == 200


@pytest.mark.parametrize("size", [3, 7, 16, 100])
def test_every_position_is_equally_likely(size):
    """Chi-square over 2,000 keys, for the first and the last element; 6 standard deviations."""
    for element in (0, size - 1):
        positions = np.bincount([permute(element, size, key) for key in range(2000)], minlength=size)
        expected = 2000 / size
        chi_square = ((positions - expected) ** 2 / expected).sum()
        assert abs(chi_square - (size - 1)) < 6 * np.sqrt(2 * (size - 1)), positions


def test_neighbours_are_separated():
    size = 10_000
    rows = permute(np.arange(size), size, 3).astype(float)
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(rows, np.arange(size))[0, 1]) < 0.05


def test_sizes_beyond_32_bits():
    size = 2**50 + 12345
    rows = permute(np.arange(1000) + size - 1000, size, 9)
    assert len(set(rows.tolist())) == 1000
    assert rows.min() >= 0 and rows.max() < size


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5), (0, 2**63)])
def test_out_of_range_is_an_error(index, size):
    with pytest.raises(ValueError):
        permute(index, size, 0)

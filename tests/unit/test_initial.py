"""Initial weights: standard deviations, windows, and that only seed and name decide the values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspore_palm import PaLMConfig
from mindspore_palm.model.initial import draw, initial_weight, standard_normal

CONFIG = PaLMConfig(layers=1, d_model=96, heads=4, head_dim=16, d_ff=512, vocab_size=1000)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_window_is_that_part_of_the_full_weight(data):
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    window = []
    for size in shape:
        start = data.draw(st.integers(0, size - 1))
        window.append(slice(start, data.draw(st.integers(start + 1, size))))
    full = draw(3, "kernel", shape)
    assert full.shape == tuple(shape)
    np.testing.assert_array_equal(draw(3, "kernel", shape, window), full[tuple(window)])


def test_a_window_of_a_fused_kernel_has_the_std_of_its_rows():
    full = initial_weight(CONFIG, 0, "blocks.0.o_wo")
    window = (slice(100, 300), slice(10, 20))
    np.testing.assert_array_equal(initial_weight(CONFIG, 0, "blocks.0.o_wo", window), full[window])


def test_the_cost_of_a_window_of_540b_is_its_size():
    config = PaLMConfig.from_preset("palm_540b")
    part = initial_weight(config, 0, "blocks.117.q_wi", (slice(18000, 18072), slice(0, 13312)))
    assert part.shape == (72, 13312)
    assert part.std() == pytest.approx(18432**-0.5, rel=0.01)


def test_std_is_one_over_the_root_of_the_fan_in():
    assert initial_weight(CONFIG, 0, "embedding").std() == pytest.approx(1.0, rel=0.02)
    assert initial_weight(CONFIG, 0, "blocks.0.q_wi").std() == pytest.approx(96**-0.5, rel=0.02)
    assert initial_weight(CONFIG, 0, "blocks.0.kv").std() == pytest.approx(96**-0.5, rel=0.05)
    by_head = initial_weight(CONFIG, 0, "blocks.0.o_wo").reshape(4, 16 + 128, 96)
    assert by_head[:, :16].std() == pytest.approx(64**-0.5, rel=0.03)  # attention: heads * head_dim inputs
    assert by_head[:, 16:].std() == pytest.approx(512**-0.5, rel=0.02)  # mlp: d_ff inputs


def test_values_are_normal():
    x = standard_normal(1, "x", 0, 400_000).astype(np.float64)
    assert abs(x.mean()) < 0.006 and abs(x.std() - 1) < 0.005
    assert abs((x**3).mean()) < 0.02 and abs((x**4).mean() - 3) < 0.05
    assert np.isfinite(x).all() and 4 < np.abs(x).max() < 7
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.006


def test_seed_and_name_decide():
    a = initial_weight(CONFIG, 0, "blocks.0.kv")
    np.testing.assert_array_equal(a, initial_weight(CONFIG, 0, "blocks.0.kv"))
    two = PaLMConfig(**{**CONFIG.model_dump(), "layers": 2})
    np.testing.assert_array_equal(a, initial_weight(two, 0, "blocks.0.kv"))  # other layers do not matter
    assert np.abs(a - initial_weight(two, 0, "blocks.1.kv")).max() > 0.1
    assert np.abs(a - initial_weight(CONFIG, 1, "blocks.0.kv")).max() > 0.1

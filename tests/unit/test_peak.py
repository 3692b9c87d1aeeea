"""The measured peak, which MFU is relative to unless train.peak_tflops is set."""

from __future__ import annotations

import math

import pytest

from mindspore_palm.train.log import peak


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_peak_of_the_cpu_is_measured_in_the_compute_dtype(device, dtype, monkeypatch):
    monkeypatch.setattr(peak, "ON_CPU", peak.Sample(64, 1))
    flops = peak.measure_peak("CPU", dtype)
    assert math.isfinite(flops) and flops > 0

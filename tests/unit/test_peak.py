"""The measured peak, which MFU is relative to unless train.peak_tflops is set."""

from __future__ import annotations

import json
import math
import time

import pytest

from mindspore_palm.train.log import peak


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_peak_of_the_cpu_is_measured_in_the_compute_dtype(device, dtype, monkeypatch):
    monkeypatch.setattr(peak, "ON_CPU", peak.Sample(64, 1))
    flops = peak.measure_peak("CPU", dtype)
    assert math.isfinite(flops) and flops > 0


@pytest.fixture
def measurements(tmp_path, monkeypatch):
    """A cache of its own, and the measurements that were taken: of 1, 2 ... FLOP/s."""
    taken = []

    def measure(device, dtype):
        taken.append((device, dtype))
        return float(len(taken))

    monkeypatch.setenv("MINDSPORE_PALM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(peak, "measure_peak", measure)
    return taken


def kept(tmp_path):
    (file,) = (tmp_path / "cache" / "peaks").iterdir()
    return file


def test_a_cpu_is_measured_once_a_day(measurements, tmp_path):
    assert peak.peak_of("CPU", "float32") == (1.0, "measured on a matmul just now")
    later = peak.peak_of("CPU", "float32")
    assert later.flops == 1.0 and "0 min ago" in later.source
    file = kept(tmp_path)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "time": time.time() - 3 * 3600}))
    assert "3 h ago" in peak.peak_of("CPU", "float32").source
    file.write_text(json.dumps({**content, "time": time.time() - peak.KEPT}))
    assert peak.peak_of("CPU", "float32").flops == 2.0
    assert len(measurements) == 2


def test_each_dtype_device_and_worker_is_measured_by_itself(measurements):
    for others in (("CPU", "float32"), ("CPU", "float16"), ("GPU", "float32"), ("GPU", "float32")):
        assert "just now" in peak.peak_of(*others).source
    assert "just now" in peak.peak_of("CPU", "float32", alone=False).source
    assert len(measurements) == 5


def test_a_given_peak_is_not_measured(measurements):
    assert peak.peak_of("CPU", "float32", 5e12) == (5e12, "as set")
    assert not measurements


@pytest.mark.parametrize(
    "damaged",
    ["", "[]", "{}", '{"flops": 0, "time": 9e9}', '{"flops": NaN, "time": 0}', '{"flops": 1e9, "time": 9e12}'],
)
def test_a_damaged_file_is_measured_again(damaged, measurements, tmp_path):
    peak.peak_of("CPU", "float32")
    kept(tmp_path).write_text(damaged)
    assert peak.peak_of("CPU", "float32").flops == 2.0
    assert peak.peak_of("CPU", "float32").flops == 2.0


def test_a_cache_that_cannot_be_written_fails_nothing(measurements, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert [peak.peak_of("CPU", "float32").flops for _ in range(2)] == [1.0, 2.0]

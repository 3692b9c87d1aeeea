"""The table of training steps in docs/benchmarks.md is that of the results which are committed beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "train_step.json"

sys.path.insert(0, str(ROOT / "benchmarks"))
from page import PAGE, table, with_table  # noqa: E402 - found by the path above

FOUND = {
    **{"processor": "Some CPU", "processors": 2, "date": "2026-01-02 03:04 UTC", "commit": "abc1234"},
    **{"versions": {"mindspore": "2.10.0", "jax": None, "torch": "2.13.0"}, "rounds": 3, "steps": 4},
    "shapes": [
        {
            "shape": [8, 2, 4, 2, 61, 16, 3],
            "peak_gflops": 99.6,
            "figures": {
                "mindspore_palm": {"ms": 12.34, "times_ours": 1.0, "of_peak": 0.456},
                "torch.compile": {"ms": 20.0, "times_ours": 1.625, "of_peak": 0.3},
            },
        }
    ],
}


def test_a_row_has_peak_time_share_and_ratios():
    machine, _, head, _, row = table(FOUND).splitlines()
    assert machine.startswith("2 cores of Some CPU, 2026-01-02 03:04 UTC, commit abc1234; mindspore 2.10.0, torch")
    assert head.endswith("| peak | this package | of the peak | torch.compile |")
    assert row == "| 8, 2, 4, 2, 61, 16, 3 | 100 GFLOP/s | 12.3 ms | 46% | 1.62x |"


def test_only_the_table_of_a_page_is_replaced():
    page = "before\n<!-- training steps: benchmarks/page.py -->old<!-- end of training steps -->\nafter"
    first = with_table(page, FOUND)
    assert first.startswith("before\n") and first.endswith("\nafter") and "old" not in first
    assert with_table(first, FOUND) == first


def test_the_page_shows_the_committed_results():
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, json.loads(RESULTS.read_bytes())) == page

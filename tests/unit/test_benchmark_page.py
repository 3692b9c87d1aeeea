"""The tables of docs/benchmarks.md are those of the results which are committed beside it; and what is measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ("train_step.json", "decode.json")

sys.path.insert(0, str(ROOT / "benchmarks"))
from decode import Turn, config_for, decode, flops_of_prompt, flops_per_step, row_of  # noqa: E402 - by the path above
from machine import Rates  # noqa: E402
from page import PAGE, decoding_table, table, with_table  # noqa: E402

MACHINE = {
    **{"processor": "Some CPU", "processors": 2, "date": "2026-01-02 03:04 UTC", "commit": "abc1234"},
    **{"versions": {"mindspore": "2.10.0", "jax": None, "torch": "2.13.0"}, "rounds": 3, "steps": 4},
}
FOUND = {
    **MACHINE,
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


OURS = {"tokens_per_second": 1234.5, "times_ours": 1.0, "of_limit": 0.813, "of_fastest": 0.755}
OTHER = {"tokens_per_second": 500.0, "times_ours": 2.469, "of_limit": 0.4, "of_fastest": 0.3}
DECODED = {
    **MACHINE,
    "decoding": [
        {
            **{"batch": 8, "context": 128, "gigabytes_per_second": 51.4, "peak_gflops": 99.6},
            **{"limit": 1518.2, "limited_by": "memory"},
            "figures": {"mindspore_palm": OURS, "torch.compile, cache": OTHER, "torch, no cache": OTHER},
        }
    ],
    "prompts": [
        {
            **{"prompt": 512, "peak_gflops": 99.6, "limit": 1518.2},
            "figures": {"mindspore_palm": OURS, "torch.compile, cache": OTHER},
        }
    ],
}


def test_a_row_has_peak_time_share_and_ratios():
    machine, _, head, _, row = table(FOUND).splitlines()
    assert machine.startswith("2 cores of Some CPU, 2026-01-02 03:04 UTC, commit abc1234; mindspore 2.10.0, torch")
    assert head.endswith("| peak | this package | of the peak | torch.compile |")
    assert row == "| 8, 2, 4, 2, 61, 16, 3 | 100 GFLOP/s | 12.3 ms | 46% | 1.62x |"


def test_a_row_of_decoding_has_rates_limit_share_and_ratios():
    machine, _, head, _, *rows = decoding_table(DECODED).splitlines()
    assert machine.endswith("mindspore 2.10.0, torch 2.13.0; 3 rounds:")
    assert head.endswith("| this package | of the limit | torch.compile, cache | torch, no cache |")
    assert rows == [
        "| batch 8, context 128 | 51 GB/s | 100 GFLOP/s | 1,518 by memory | 1,234 | 81% (76%) | 2.47x | 2.47x |",
        "| prompt of 512 |  | 100 GFLOP/s | 1,518 | 1,234 | 81% (76%) | 2.47x |  |",
    ]


def test_only_the_table_of_a_page_is_replaced():
    page = "before\n<!-- training steps: benchmarks/page.py -->old<!-- end of training steps -->\nafter"
    first = with_table(page, FOUND)
    assert first.startswith("before\n") and first.endswith("\nafter") and "old" not in first
    assert with_table(first, FOUND) == first


@pytest.mark.parametrize("results", RESULTS)
def test_the_page_shows_the_committed_results(results):
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, json.loads((ROOT / "docs" / "results" / results).read_bytes())) == page


def test_no_other_page_has_the_marks():
    """Between them, sentences are in no ledger."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert {page: page.read_text(encoding="utf-8").count("benchmarks/page.py -->") for page in pages} == {
        page: len(RESULTS) if page == PAGE else 0 for page in pages
    }


def test_flops_are_those_of_the_matmuls():
    """Of each token 2 per weight, and of attention 2 for the scores and 2 for the mix, each over H*K per position."""
    config = config_for("mindspore_palm")
    wide, unembed = config.heads * config.head_dim, config.vocab_size * config.d_model
    blocks = config.layers * config.d_model * (2 * wide + 3 * config.d_ff + 2 * config.head_dim)
    seen = config.layers * 4 * wide
    assert flops_per_step(config, 4, 100) == 4 * (2 * (blocks + unembed) + 100 * seen)
    assert flops_of_prompt(config, 3) == 2 * (3 * blocks + unembed) + (1 + 2 + 3) * seen


def test_a_turn_is_compared_with_the_longer_of_both_times():
    """2 s by memory and 1 s by arithmetic; then arithmetic takes 4 s; then memory alone is faster for a moment."""
    turns = [Turn(4.0, Rates(50, 100, 30)), Turn(5.0, Rates(50, 50, 7.5)), Turn(8.0, Rates(50, 200, 7.5))]
    shares = [row_of([turn], 10, [turn], lambda memory, flops: max(100 / memory, 30 / flops)) for turn in turns]
    assert [row["of_limit"] for row in shares] == [0.5, 0.8, 0.5]
    assert [row["of_fastest"] for row in shares] == [0.25, 0.8, 0.5]
    assert shares[0]["tokens_per_second"] == 2.5


@pytest.mark.parametrize(("memory", "arithmetic", "by"), [(1e9, 1e15, "memory"), (1e15, 1e9, "arithmetic")])
def test_the_limit_is_the_smaller_rate(monkeypatch, memory, arithmetic, by):
    def turns_of(steps, rounds):
        return {name: [Turn(1.0, Rates(memory, memory, arithmetic))] * rounds for name in steps}

    monkeypatch.setattr("decode.take_turns", turns_of)
    result = decode(8, 128, ["mindspore_palm"], 3, 10)
    assert result["limited_by"] == by
    assert result["limit"] == pytest.approx(8 * result["figures"]["mindspore_palm"]["of_limit"] ** -1, rel=1e-9)

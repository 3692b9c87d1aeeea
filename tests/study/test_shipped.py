"""The study that comes with the project, and the page that is generated from its results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mindspore_palm.study.costs import quantity
from mindspore_palm.study.file import read_study
from mindspore_palm.study.page import page
from mindspore_palm.study.results import verdict
from mindspore_palm.study.runs import comparing, measuring, trained_sizes, tuning
from mindspore_palm.study.statistics import Interval

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "yaml" / "studies" / "article.yaml"
RESULTS = ROOT / "docs" / "results" / "results.json"


@pytest.fixture(scope="module")
def study():
    return read_study(STUDY)


def test_at_least_five_seeds_and_four_sizes(study):
    assert len(study.seeds) >= 5 and len(study.fit.sizes) >= 4
    assert set(study.seeds).isdisjoint(study.rates.seeds)
    assert len(trained_sizes(study, "serial")) == 3


def test_every_network_has_the_parameters_and_flops_of_palm(study):
    """Exactly, but for learned positions: their table takes the place of mlp columns, which are counted by the four,
    and its rows are added, not multiplied, so that a few percent of the FLOPs are missing.
    """
    for variant in study.variants:
        for size in trained_sizes(study, variant):
            ours, palm = study.settings_of(variant, size), study.settings_of("palm", size)
            for measure in ("parameters", "flops"):
                ratio = quantity(measure, ours) / quantity(measure, palm)
                off = {"parameters": 0.01, "flops": 0.06}[measure] if variant == "learned" else 0
                assert abs(ratio - 1) <= off, (variant, size, measure, ratio)


def test_every_network_is_tuned_alike(study):
    seen = {}
    for task in tuning(study):
        seen.setdefault((task.variant, task.size), []).append((task.seed, task.rate))
    assert len({tuple(pairs) for pairs in seen.values()}) == 1
    assert list(comparing(study, dict.fromkeys(seen, 0.01)))


def test_every_result_has_the_name_of_a_file(study):
    seen = dict.fromkeys(((variant, size) for variant in study.variants for size in study.sizes), 0.01)
    tasks = [*tuning(study), *comparing(study, seen), *measuring(study)]
    assert all(re.fullmatch(r"[\w.-]+", task.name) for task in tasks)


def test_the_attention_of_540b_by_hand(study):
    """48 heads of 256: projections of D x (2*48 + 2) K against D x 4*48 K, 196/98.0 - 1 = 95.9 % more, not 200 %."""
    ours, palm = (quantity("attention_parameters", study.settings_of(v, "palm_540b")) for v in ("multi_head", "palm"))
    assert ours / palm == pytest.approx(4 * 48 / (2 * 48 + 2))
    ours, palm = (quantity("kv_flops", study.settings_of(v, "palm_540b")) for v in ("multi_head", "palm"))
    assert ours == 48 * palm and palm == 6 * 118 * 18432 * 2 * 256


def test_bytes_of_state_by_hand(study):
    """Two float32 moments per weight for PaLM's Adafactor and AdamW alike."""
    palm, adamw = (quantity("state_bytes", study.settings_of(v, "palm_8b")) for v in ("palm", "adamw"))
    scales = 32 * 4096
    assert palm == adamw == 8 * (study.settings_of("palm", "palm_8b").model.parameter_count() + scales)
    assert quantity("state_bytes", study.settings_of("factored", "palm_8b")) < 0.51 * palm


def test_cache_bytes_by_hand(study):
    """Keys and values of one head of 256 in 118 layers, in float32, for 2 sequences of 100 tokens."""
    assert quantity("cache_bytes", study.settings_of("palm", "palm_540b"), (2, 100)) == 118 * 2 * 256 * 4 * 200


@pytest.mark.parametrize(
    ("expects", "about", "interval", "said"),
    [
        ("higher", None, (0.1, 0.2), "holds"),
        ("higher", None, (-0.2, -0.1), "does not follow"),
        ("higher", None, (-0.1, 0.2), "not seen at this size"),
        ("lower", None, (-0.2, -0.1), "holds"),
        ("anything", None, (0.1, 0.2), "measured"),
        ("higher", [10.0, 20.0], (14.0, 16.0), "holds"),
        ("higher", [10.0, 20.0], (21.0, 24.0), "does not follow"),
    ],
)
def test_a_verdict_follows_from_the_interval_and_what_the_file_expects(study, expects, about, interval, said):
    one = study.comparisons[0].model_copy(update={"expects": expects, "about": about})
    assert verdict(one, Interval(sum(interval) / 2, *interval, 5)) == said


def test_the_page_is_what_the_generator_makes():
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == page(json.loads(RESULTS.read_bytes()))


def test_the_page_is_of_a_full_run_of_this_study(study):
    found = json.loads(RESULTS.read_bytes())
    assert not found["quick"] and found["seeds"] == study.seeds
    assert {row["claim"] for row in found["comparisons"]} == set(study.claims)
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for picture in re.findall(r"\]\((results/[\w.]+)\)", text):
        assert (ROOT / "docs" / picture).exists(), picture

"""The table of appendix B of the PaLM paper."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan import megatron

from mindspore_palm.plan import published_runs
from mindspore_palm.plan.published import MT_NLG, systems
from mindspore_palm.settings import load_settings

YAML = Path(__file__).resolve().parents[2] / "yaml"

# name: MFU and HFU that follow from the published throughput, in percent (the published ones are in systems())
FOLLOWS = {
    "GPT-3 175B": (20.2, None),
    "Gopher 280B": (32.5, None),
    "MT-NLG 530B": (30.26, 40.4),
    "PaLM 540B": (46.2, 57.83),
}


@pytest.mark.parametrize("system", systems(), ids=lambda system: system.name)
def test_utilisation_follows_from_throughput(system):
    mfu, hfu = FOLLOWS[system.name]
    assert system.our_mfu == pytest.approx(mfu, abs=0.06)
    assert system.our_hfu is None if hfu is None else system.our_hfu == pytest.approx(hfu, abs=0.06)
    follows = abs(system.our_mfu - system.mfu) < 0.1 and (hfu is None or abs(system.our_hfu - system.hfu) < 0.1)
    assert follows != bool(system.note)  # what does not follow has its reason


def test_palm_without_attention():
    palm = systems()[-1]
    assert palm.utilisation(6 * palm.parameters) == pytest.approx(45.7, abs=0.05)


def test_the_ten_runs_of_megatron_are_all_there_as_published():
    """The package's table is the one that the tests copied from the paper, and the rows are within 9 % of it."""
    ours = {name.removesuffix("B"): row for name, row in published_runs.MEGATRON.items()}
    assert ours.keys() == {"1.7", "3.6", "7.5", "18.4", "39.1", "76.1", "145.6", "310.1", "529.6", "1008.0"}
    assert list(ours.values()) == list(megatron.TABLE.values())
    rows = [run for run in published_runs.runs() if "table 1" in run.source]
    assert [run.published for run in rows] == [137, 138, 142, 135, 138, 140, 148, 155, 163, 163]
    assert all(abs(run.error) < 0.09 for run in rows)
    assert [run.quantity for run in rows if "calibrates" in run.source] == ["Megatron 529.6B, 2,520 A100"]


def test_sequence_parallelism_gains_what_megatron_s_did():
    """arXiv 2205.05198, table 5: 29.0, 31.8, 29.7 and 32.1 % faster than with full recomputation; nothing is fitted."""
    rows = {run.quantity: run for run in published_runs.runs() if "table 5" in run.source}
    assert len(rows) == 8 and max(abs(run.error) for run in rows.values()) < 0.15
    published = {"22B, 8": 29.0, "175B, 64": 31.8, "530B, 280": 29.7, "1T, 512": 32.1}
    for name, gain in published.items():
        full, sharded = (rows[f"Megatron {name} A100, {how}"] for how in ("full recomputation", "sequence parallel"))
        assert 100 * (full.published / sharded.published - 1) == pytest.approx(gain, abs=0.2)
        assert 100 * (full.ours / sharded.ours - 1) == pytest.approx(gain, abs=9)


def test_mt_nlg_s_three_times_say_where_its_time_is():
    """arXiv 2201.11990, section 2.4: 126, 121 and 113 TFLOP/s per device, by the formula of 2104.04473."""
    width, layers = 20480, 105
    flops = 96 * 1920 * 2048 * layers * width**2 * (1 + 2048 / (6 * width) + 51200 / (16 * layers * width))
    rates = {8: 126, 10: 121, 12: 113}
    for data, seconds in published_runs.MT_NLG_SECONDS.items():
        assert flops / seconds / (280 * data) / 1e12 == pytest.approx(rates[data], abs=0.6)
    slot, once = published_runs.per_slot(published_runs.MT_NLG_SECONDS)
    for data, seconds in published_runs.MT_NLG_SECONDS.items():
        assert (1920 / data + 34) * slot + once == pytest.approx(seconds, abs=0.4)
    ours, ours_once = published_runs.per_slot(published_runs.mt_nlg_seconds())
    assert ours < slot and ours_once < once / 5  # most of the gap is what the run did once per step


def test_the_strong_scaling_on_h100_is_printed_however_wrong():
    rows = [run for run in published_runs.runs() if "H100" in run.quantity]
    assert [(run.published, run.unit) for run in rows] == [(47.0, "% MFU"), (42.0, "% MFU")]
    assert all(0.3 < run.error < 0.5 for run in rows)  # predicted before anything on H100 was fitted
    few, many = (run.ours for run in rows)
    assert many < few  # more devices, the same batch
    best = published_runs.strong_scaling(96)
    model, mesh = best.settings.model, best.settings.parallel
    assert model.parameter_count() / 1e9 == pytest.approx(175, rel=0.01)  # slightly more, due to the vocabulary
    assert mesh.data * mesh.model * best.pipeline.stages == 96 and best.bytes <= 0.96 * 80 * 2**30


@pytest.mark.parametrize(
    ("name", "layers", "d", "counted", "with_the_rest", "published", "tokens"),
    [
        ("gpt3_175b", 96, 12288, 174_563_733_504, 174_604_259_328, 175.0e9, (300e9, 3.2e6)),
        ("mt_nlg_530b", 105, 20480, 529_511_567_360, 529_581_506_560, 530e9, (270e9, 1920 * 2048)),
    ],
)
def test_shipped_networks_of_others_have_their_parameters(name, layers, d, counted, with_the_rest, published, tokens):
    """12*L*D^2 + V*D, and what the configuration says that the originals also have."""
    settings, _ = load_settings(YAML / f"{name}.yaml")
    model = settings.model
    assert model.parameter_count() == 12 * layers * d**2 + 50257 * d == counted
    positions = 2048 * d
    biases = layers * (3 * d + d + 4 * d + d)  # of q, k and v, of attention's output, and of both layers of the mlp
    norms = (2 * layers + 1) * 2 * d  # shift and scale
    assert counted + positions + biases + norms == with_the_rest
    assert with_the_rest == pytest.approx(published, rel=0.003)
    text = (YAML / f"{name}.yaml").read_text()
    assert all(f"{n:,}" in text for n in (counted, positions, biases + norms, with_the_rest))
    total, batch = tokens
    assert settings.train.batch_size * 2048 == pytest.approx(batch, rel=0.02)
    assert settings.train.steps * settings.train.batch_size * 2048 == pytest.approx(total, rel=1e-4)


def test_the_network_that_is_timed_is_the_shipped_one():
    shipped = load_settings(YAML / "mt_nlg_530b.yaml")[0].model
    for size in ("layers", "d_model", "heads", "head_dim", "d_ff", "block", "attention", "mlp"):
        assert getattr(MT_NLG, size) == getattr(shipped, size)
    assert MT_NLG.padded_vocab == shipped.padded_vocab

"""The table of appendix B of the PaLM paper."""

from __future__ import annotations

from pathlib import Path

import pytest

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

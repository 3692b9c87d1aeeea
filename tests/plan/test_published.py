"""The table of appendix B of the PaLM paper."""

from __future__ import annotations

import pytest

from mindspore_palm.plan.published import systems

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

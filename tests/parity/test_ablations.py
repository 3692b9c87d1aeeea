"""The ablations against JAX: each switch gives the network that its name says."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from parity.twins import EVEN, logits_of, randomise_scales, relative, tokens, weights_of
from switches import SWITCHES, name_of

from mindspore_palm import PaLM, PaLMConfig


@pytest.mark.parametrize("switches", SWITCHES, ids=name_of)
def test_logits(device, rng, switches):
    config = PaLMConfig(**{**EVEN, "layers": 1}, **switches)
    palm = PaLM(config, seed=2)
    randomise_scales(palm, rng)
    inputs, _ = tokens(rng, config, 2, 12)
    expected = logits_of(weights_of(palm), inputs, config, **switches)
    assert relative(palm(Tensor(inputs)).asnumpy(), expected) < 2e-6
    drawn = sum(p.size for p in palm.trainable_params() if not p.name.endswith("norm.scale"))
    assert drawn == config.parameter_count()


def test_every_value_of_every_switch_is_compared():
    """A switch that is added to the configuration needs a line in SWITCHES."""
    compared = {(name, value) for switches in SWITCHES for name, value in switches.items()}
    missing = set()
    for name, default in PaLMConfig.switches().items():
        if get_origin(PaLMConfig.model_fields[name].annotation) is Literal:
            values = set(get_args(PaLMConfig.model_fields[name].annotation))
        else:
            values = {not default} if isinstance(default, bool) else set()
        missing |= {(name, v) for v in values - {default}} - compared
        assert values or any(name in switches for switches in SWITCHES), name
    assert not missing


def test_gradients_flow_to_every_weight_of_the_standard_transformer(device, rng):
    palm = PaLM(PaLMConfig(**{**EVEN, "layers": 1}, **SWITCHES[0]))
    inputs, _ = tokens(rng, palm.config, 2, 12)

    def objective(ids):
        return (palm(ids) ** 2).mean()

    gradients = ms.grad(objective, None, palm.trainable_params())(Tensor(inputs))
    assert {p.name for p in palm.trainable_params()} >= {"blocks.0.norm.scale", "blocks.0.mlp_norm.scale"}
    for p, g in zip(palm.trainable_params(), gradients, strict=True):
        assert np.abs(g.asnumpy()).max() > 0, p.name


def test_a_cache_changes_nothing(device, rng):
    """Decoding with norms, logits and rotation of other PaLMs gives the logits of the full sequence."""
    from mindspore_palm.generate.decoder import CHUNK, Decoder

    switches = {"norm": "layer_norm", "final_norm_scale": True, "scaled_logits": False, "xpos_base": 32.0}
    palm = PaLM(PaLMConfig(**{**EVEN, "layers": 1}, **switches), seed=2)
    randomise_scales(palm, rng)
    ids = rng.integers(0, EVEN["vocab_size"], CHUNK + 7).astype(np.int32)
    expected = palm(Tensor(ids[None])).asnumpy()[0]
    decoder = Decoder(palm, 1, len(ids))
    decoded = [decoder.read([ids[: CHUNK + 2]])[0][0]]
    for position in range(CHUNK + 2, len(ids)):
        decoded.append(decoder.write(ids[position : position + 1], np.array([position]))[0][0])
    assert relative(decoded, expected[CHUNK + 1 :]) < 1e-5

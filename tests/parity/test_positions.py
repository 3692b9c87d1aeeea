"""``model.position``: learned rows, ALiBi and none against JAX, with and without a cache, and where they end."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from parity.twins import EVEN, logits_of, randomise_scales, relative, shape_of, tokens, weights_of
from reference import ablations, compiled
from reference import palm as reference

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.errors import UserError
from mindspore_palm.generate.decoder import CHUNK, Decoder
from mindspore_palm.model.loss import Loss
from mindspore_palm.model.position import alibi_slopes
from mindspore_palm.parallel.axes import Layout, layout
from mindspore_palm.settings import load_settings

LENGTH = 2 * CHUNK + 4  # long enough for causal attention in two halves
POSITIONS = [
    {"position": "rope"},
    {"position": "learned", "position_rows": LENGTH},
    {"position": "alibi"},
    {"position": "none"},
]
CASES = [{**position, "attention": attention} for position in POSITIONS for attention in ("multi_query", "multi_head")]


def name_of(switches):
    return f"{switches['position']}-{switches.get('attention', '')}"


def network(rng, switches):
    palm = PaLM(PaLMConfig(**{**EVEN, "layers": 1}, **switches), seed=3)
    randomise_scales(palm, rng)
    return palm


@pytest.mark.parametrize("switches", CASES, ids=name_of)
def test_loss_and_gradients_are_those_of_jax(device, rng, switches):
    """Float32 roundings of 6e-8, summed in another order: 1e-6 of the loss, 1e-5 in norm of every gradient."""
    palm = network(rng, switches)
    config, weights = palm.config, weights_of(palm)
    inputs, targets = tokens(rng, config, 2, LENGTH)

    def in_jax(weights):
        z = ablations.logits(weights, inputs, shape_of(config), **switches)
        mask = jnp.asarray(targets >= 0, jnp.float32)
        return reference.loss_of(z, jnp.maximum(targets, 0), mask, shape_of(config))[0]

    expected, gradients = compiled(jax.value_and_grad(in_jax))(weights)
    loss, parameters = Loss(palm), list(palm.trainable_params())
    count = Tensor(np.float32((targets >= 0).sum()))

    def objective(inputs, targets):
        return loss(inputs, targets, count)[0]

    value, ours = ms.value_and_grad(objective, None, parameters)(Tensor(inputs), Tensor(targets))
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for parameter, gradient in zip(parameters, ours, strict=True):
        assert relative(gradient.asnumpy(), gradients[parameter.name]) < 1e-5, parameter.name


@pytest.mark.parametrize("switches", CASES[2:], ids=name_of)
def test_a_cache_gives_the_logits_of_the_full_sequence(device, rng, switches):
    palm = network(rng, switches)
    ids = rng.integers(0, palm.config.vocab_size, (2, LENGTH)).astype(np.int32)
    expected = logits_of(weights_of(palm), ids, palm.config, **switches)
    decoder, lengths = Decoder(palm, 2, LENGTH), np.array([LENGTH - 4, 3])
    logits, _ = decoder.read([list(row[:n]) for row, n in zip(ids, lengths, strict=True)])
    for step in range(5):
        for row in range(2):
            assert relative(logits[row], expected[row, lengths[row] - 1]) < 1e-5
        if step < 4:  # the first sequence is then as long as the table of learned positions
            logits, _ = decoder.write(ids[[0, 1], lengths], lengths)
            lengths = lengths + 1


def test_slopes_are_those_of_the_paper():
    """Section 3: for 8 heads 1/2, 1/4, ..., 1/256; for 16 the square roots between them as well."""
    np.testing.assert_array_equal(alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(16)[:3], [2**-0.5, 0.5, 2**-1.5], rtol=1e-7)


def test_the_fused_primitive_has_one_mask_for_all_heads_so_alibi_does_without_it(device):
    from mindspore_palm.cost.activations import Activations
    from mindspore_palm.model.attention import FusedAttention
    from mindspore_palm.model.factory import make_attention

    with layout(Layout(target="Ascend", compute_dtype="bfloat16")) as here:
        for position, fused in (("none", True), ("alibi", False)):
            config = PaLMConfig(**{**EVEN, "head_dim": 64}, position=position)
            assert isinstance(make_attention(config).attend, FusedAttention) is fused
            assert Activations(config, here or Layout(), 64, 32, "none").holds_scores is not fused


class TestWhereLearnedPositionsEnd:
    def test_the_table_has_a_row_per_token_of_a_sequence(self):
        settings = load_settings(None, ["model.position=learned", "data.seq_len=48"])[0]
        assert settings.model.position_rows == settings.model.longest == 48
        assert load_settings(None, ["model.position=learned"])[0].model.longest == settings_default()

    def test_parameters_but_no_flops(self):
        learned, none = (PaLMConfig(**EVEN, position=p, position_rows=r) for p, r in (("learned", 10), ("none", 0)))
        assert learned.parameter_count() - none.parameter_count() == 10 * EVEN["d_model"]
        assert learned.flops_per_token(10) == none.flops_per_token(10)

    @pytest.mark.parametrize(
        ("overrides", "sentence"),
        [
            (
                ["model.position=learned", "model.position_rows=8", "data.seq_len=9"],
                r"^override data.seq_len=9, override model.position_rows=8: data.seq_len = 9 is beyond "
                r"model.position_rows = 8: learned positions end there; set data.seq_len to at most 8",
            ),
            (
                ["model.position=alibi", "model.xpos_base=512"],
                r"model.xpos_base = 512 is of a rotation, and position = alibi has none; set it to 0$",
            ),
            (["model.position=sinus"], r"model.position = 'sinus' is not known; choose one of rope, learned, alibi"),
        ],
    )
    def test_settings_that_contradict_are_refused(self, overrides, sentence):
        with pytest.raises(UserError, match=sentence):
            load_settings(None, overrides)

    def test_a_table_without_rows_is_refused(self):
        with pytest.raises(ValueError, match="position = learned needs position_rows"):
            PaLMConfig(**EVEN, position="learned")

    def test_a_longer_sequence_is_refused(self, device, rng):
        palm = network(rng, {"position": "learned", "position_rows": 6})
        with pytest.raises(ValueError, match="a sequence of 7 tokens, and the network has learned 6 positions"):
            palm(Tensor(np.zeros((1, 7), np.int32)))

    def test_a_longer_generation_is_refused(self, device, rng):
        palm = network(rng, {"position": "learned", "position_rows": 6})
        with pytest.raises(UserError, match=r"context = 7: the model has learned 6 positions, .* at most 6"):
            Decoder(palm, 1, 7)

    @pytest.mark.parametrize("position", ["learned", "alibi", "none"])
    def test_a_mesh_refuses_them(self, position):
        from mindspore_palm.model.weights import placements
        from mindspore_palm.parallel.check import check_layout, layout_of

        settings = load_settings(None, [f"model.position={position}", "parallel.data=2"])[0]
        with pytest.raises(UserError, match=f"model.position={position} is for one device, and parallel asks for 2"):
            check_layout(settings, layout_of(settings), placements)

    def test_conversion_to_a_longer_length_is_refused(self):
        from mindspore_palm.convert.convert import _check_length

        config = PaLMConfig(**EVEN, position="learned", position_rows=6)
        _check_length(config, 6, 6)
        with pytest.raises(UserError, match="--seq-len 7: the model has learned 6 positions; set it to at most 6"):
            _check_length(config, 7, 6)
        with pytest.raises(UserError, match="--length 7: the model"):
            _check_length(config, None, 7)


def settings_default():
    from mindspore_palm.config import Settings

    return Settings().data.seq_len

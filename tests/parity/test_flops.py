"""FLOPs: what PaLMConfig says against the products that XLA is given for the JAX reference, forward and backward.

Counted exactly: two operations for every term of every product (``dot``) in the program before XLA's optimiser, calls
followed as often as they are made. XLA's own count adds element-wise work; at these sizes, 3 % at most.
"""

from __future__ import annotations

import re
from math import prod

import jax
import jax.numpy as jnp
import pytest
from parity.twins import shape_of
from reference import pods

from mindspore_palm import PaLMConfig

BATCH, LENGTH = 2, 32
CONFIGS = {
    "heads * head_dim is not d_model": PaLMConfig(layers=2, d_model=96, heads=3, head_dim=24, d_ff=384, vocab_size=80),
    "three layers": PaLMConfig(layers=3, d_model=64, heads=4, head_dim=16, d_ff=256, vocab_size=128),
}


def program(config: PaLMConfig, recompute: str):
    """Loss and every gradient, lowered: what XLA is given."""
    shape = shape_of(config)
    weights = {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in pods.weight_shapes(shape).items()}
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)

    def loss(weights, inputs, targets):
        mask = jnp.ones(targets.shape, jnp.float32)
        return pods.loss(weights, inputs, targets, mask, shape, recompute=recompute, unroll=True)[0]

    return jax.jit(jax.value_and_grad(loss)).lower(weights, tokens, tokens)


def dots(hlo: str) -> int:
    """Operations of all products of a program in HLO."""
    bodies: dict[str, list[str]] = {}
    for line in hlo.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$", line)
        if header:
            name = "ENTRY" if header[1] else header[2]
            bodies[name] = []
        elif line.startswith(" "):
            bodies[name].append(line)
    known: dict[str, int] = {}

    def count(name: str) -> int:
        if name not in known:
            total, sizes = 0, {}
            for line in bodies[name]:
                defined = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = \w+\[([\d,]*)\]", line)
                if defined:
                    sizes[defined[1]] = [int(size) for size in defined[2].split(",") if size]
                product = re.search(r" dot\(%?([\w.\-]+), .*lhs_contracting_dims=\{([\d,]+)\}", line)
                if product:
                    summed = prod(sizes[product[1]][int(axis)] for axis in product[2].split(","))
                    total += 2 * prod(sizes[defined[1]]) * summed
                assert " while(" not in line  # its turns would have to be counted
                called = re.search(r" call\(.*to_apply=%?([\w.\-]+)", line)
                total += count(called[1]) if called else 0
            known[name] = total
        return known[name]

    return count("ENTRY")


@pytest.fixture(scope="module", params=CONFIGS)
def counted(request):
    """A configuration, and the operations of its products under every kind of recomputation, a token."""
    config = CONFIGS[request.param]
    kinds = ("none", "attention", "minimal", "block")
    return config, {kind: dots(program(config, kind).as_text("hlo")) / (BATCH * LENGTH) for kind in kinds}


def test_products_of_forward_and_backward(counted):
    config, per_token = counted
    assert per_token["none"] == config.flops_per_token(LENGTH)


def test_products_that_are_recomputed(counted):
    """What HFU counts and MFU does not (appendix B); one product of attention, forward, is 2*L*H*Q*T a token."""
    config, per_token = counted
    product = 2 * config.layers * config.heads * config.head_dim * LENGTH
    added = {kind: per_token[kind] - per_token["none"] for kind in per_token}
    # the paper's 4*L*H*Q*T of 8B and 62B: what T5X calls minimal, where products with weights are kept, others not
    assert added["minimal"] == config.recomputed_flops_per_token(LENGTH, "attention") == 2 * product
    # around attention alone: its result is kept, being an argument of o_wo, and only the scores are computed again
    assert added["attention"] == product
    # a whole block: its products but that with o_wo, whose result no gradient needs
    into = config.d_model * (config.heads * config.head_dim + 2 * config.d_ff + 2 * config.head_dim)
    assert added["block"] == 2 * config.layers * into + 2 * product


def test_three_quarters_of_the_forward_pass_are_more_than_is_needed():
    """HFU of 540B counts 0.75*2N again. Without o_wo it would be 0.645, with it 0.991: no products make up 0.75."""
    config = PaLMConfig.from_preset("palm_540b")
    into = config.layers * config.d_model * (config.heads * config.head_dim + 2 * config.d_ff + 2 * config.head_dim)
    out = config.layers * config.d_model * (config.heads * config.head_dim + config.d_ff)
    attention = config.recomputed_flops_per_token(2048, "attention")
    of_weights = config.recomputed_flops_per_token(2048, "block") - attention
    assert of_weights == 0.75 * 2 * config.parameter_count()
    assert into / config.parameter_count() == pytest.approx(0.645, abs=5e-4)
    assert (into + out) / config.parameter_count() == pytest.approx(0.991, abs=5e-4)


def test_xlas_own_count(counted):
    config, _ = counted
    compiled = program(config, "none").compile({"xla_backend_optimization_level": 0})
    found = compiled.cost_analysis()["flops"] / (BATCH * LENGTH)
    assert 1.0 < found / config.flops_per_token(LENGTH) < 1.03

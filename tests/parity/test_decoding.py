"""Decoding with a cache against whole passes: of the JAX reference, and of the network itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from parity.twins import EVEN, ODD, randomise_scales, relative, shape_of, weights_of
from reference import ablations
from reference import palm as reference

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.generate import kernels
from mindspore_palm.generate.decoder import CHUNK, Decoder

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"C++": 200, "MindSpore": 20}
PROMPTS = (CHUNK + 6, 1, 2 * CHUNK)  # lengths: over a chunk, the shortest, and whole chunks
LENGTH = max(PROMPTS) + STEPS["C++"]
TOLERANCE = 1e-5  # relative in norm, of the logits of one token; measured 6e-7


def network(rng, **sizes):
    palm = PaLM(PaLMConfig(**sizes), seed=4)
    randomise_scales(palm, rng)
    return palm


@pytest.fixture(params=["C++", "MindSpore"])
def products(request, monkeypatch):
    """Both ways to compute: the functions in C++, and MindSpore's ops where these are not to be had."""
    assert kernels.library() is not None, "the tests want g++"
    if request.param == "MindSpore":
        monkeypatch.setattr(kernels, "library", lambda: None)
    return request.param


def count_compilations(monkeypatch):
    """A list to which every graph that is compiled adds the name of its Cell."""
    from mindspore._c_expression import GraphExecutor_

    compiled, original = [], GraphExecutor_.compile

    def compile_and_count(*args):
        compiled.append(type(args[1]).__name__)
        return original(*args)

    monkeypatch.setattr(GraphExecutor_, "compile", compile_and_count)
    return compiled


def test_200_greedy_steps_are_those_of_whole_passes(device, rng, products, monkeypatch):
    """Of prompts of different lengths in one batch, in two compilations; every step's logits, log(Z) and choice."""
    palm = network(rng, **ODD)
    config = palm.config
    weights = weights_of(palm)
    in_jax = jax.jit(lambda ids: reference.logits(weights, ids, shape_of(config))[..., : config.vocab_size])
    ids = np.zeros((3, LENGTH), np.int32)
    for row, length in zip(ids, PROMPTS, strict=True):
        row[:length] = rng.integers(0, config.vocab_size, length)
    lengths, rows = np.array(PROMPTS), np.arange(3)
    palm(Tensor(ids)).asnumpy()
    compiled = count_compilations(monkeypatch)
    decoder = Decoder(palm, 3, LENGTH)
    logits, log_z = decoder.read([list(row[:n]) for row, n in zip(ids, lengths, strict=True)])
    for _ in range(STEPS[products]):
        for whole in (np.asarray(in_jax(ids)), palm(Tensor(ids)).asnumpy()):
            expected = whole[rows, lengths - 1]
            for ours, theirs in zip(logits, expected, strict=True):
                assert relative(ours, theirs) < TOLERANCE
            np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))
            np.testing.assert_allclose(log_z, jax.nn.logsumexp(expected, axis=-1), rtol=TOLERANCE)
        ids[rows, lengths] = logits.argmax(-1)
        logits, log_z = decoder.write(ids[rows, lengths], lengths)
        lengths = lengths + 1
    assert compiled.count("Step") == 2
    assert len({tuple(row[n - 20 : n]) for row, n in zip(ids, lengths, strict=True)}) == 3  # not all in one loop


SWITCHES = [
    {"attention": "multi_head"},
    {"parallel": False, "attention": "multi_head", "mlp": "gelu"},
    {"parallel": False},
    {"mlp": "geglu"},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_ablations_decode_as_well(device, rng, switches):
    palm = network(rng, **{**EVEN, "layers": 1}, **switches)
    full = {"parallel": True, "attention": "multi_query", "mlp": "swiglu", **switches}
    ids = rng.integers(0, palm.config.vocab_size, (2, 90)).astype(np.int32)
    expected = np.asarray(ablations.logits(weights_of(palm), ids, shape_of(palm.config), **full))
    decoder, lengths = Decoder(palm, 2, 90), np.array([80, 3])
    logits, _ = decoder.read([list(row[:n]) for row, n in zip(ids, lengths, strict=True)])
    for _ in range(10):
        for row in range(2):
            assert relative(logits[row], expected[row, lengths[row] - 1]) < TOLERANCE
        logits, _ = decoder.write(ids[[0, 1], lengths], lengths)
        lengths = lengths + 1


def test_switches_of_pytorchs_palms_decode_as_well(device, rng):
    """Against the network's own whole pass, which other tests hold against those packages."""
    switches = {"norm": "layer_norm", "norm_epsilon": 1e-5, "norm_scale": "around_one", "final_norm_scale": True}
    palm = network(rng, **{**EVEN, "layers": 1}, **switches, scaled_logits=False, xpos_base=512.0)
    ids = rng.integers(0, palm.config.vocab_size, (1, 90)).astype(np.int32)
    whole, decoder = palm(Tensor(ids)).asnumpy()[0], Decoder(palm, 1, 90)
    logits, _ = decoder.read([list(ids[0, :80])])
    for position in range(80, 90):
        assert relative(logits[0], whole[position - 1]) < TOLERANCE
        logits, _ = decoder.write(ids[0, position : position + 1], np.array([position]))


def test_a_sequence_is_started_anew(device, rng):
    """What an earlier, longer one left in the cache is not seen."""
    palm = network(rng, **{**EVEN, "layers": 1})
    decoder = Decoder(palm, 1, 64)
    first, second = (list(rng.integers(0, palm.config.vocab_size, n)) for n in (60, 7))
    fresh = decoder.read([second])[0].copy()
    decoder.read([first])
    decoder.write(np.array([first[0]]), np.array([60]))
    np.testing.assert_array_equal(decoder.read([second])[0], fresh)


def test_products_in_cpp(device, rng):
    """Sizes around those of a block of columns, and of four rows, which go together."""
    matmul = ms.ops.MatMul()
    for rows, inner, columns in ((1, 7, 1), (3, 8, 255), (kernels.MOST_ROWS, 13, 257), (1, 768, 1024)):
        x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, inner), (inner, columns)))
        for transpose in (False, True):
            product = kernels.Product(matmul, transpose)
            found = product(Tensor(x), Tensor(np.ascontiguousarray(w.T) if transpose else w)).asnumpy()
            assert relative(found, x.astype(np.float64) @ w) < 1e-6


COMING_AND_GOING = """
import mindspore as ms, numpy as np
from mindspore_palm.generate import kernels
from mindspore_palm.parallel.context import open_device
open_device("CPU")
for _ in range(24):
    product = kernels.Product(ms.ops.MatMul())
    product(ms.Tensor(np.ones((1, 768), np.float32)), ms.Tensor(np.ones((768, 1024), np.float32))).asnumpy()
print("done")
"""


def test_networks_come_and_go():
    """MindSpore unloads the library with the last network that calls it; its threads must have it still."""
    run = subprocess.run(
        [sys.executable, "-c", COMING_AND_GOING], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr[-500:]


def test_the_network_stays_as_it_is(device, rng):
    """It shares its weights with the decoder, under their names."""
    palm = network(rng, **{**EVEN, "layers": 1})
    names = [p.name for p in palm.trainable_params()]
    Decoder(palm, 1, 64)
    assert [p.name for p in palm.trainable_params()] == names == list(weights_of(palm))

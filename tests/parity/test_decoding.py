"""Cached decoding against full forward passes of the JAX reference and of the network itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from mindspore import Tensor
from parity.twins import EVEN, ODD, logits_of, randomise_scales, relative, shape_of, weights_of
from reference import compiled
from reference import palm as reference

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.generate.cpu import step as cpu_step
from mindspore_palm.generate.decoder import CHUNK, Decoder, DecodeStep
from mindspore_palm.parallel.axes import Layout, layout

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"C++": 200, "MindSpore": 20}
PROMPTS = (CHUNK + 6, 1, 2 * CHUNK)  # lengths: over a chunk, the shortest, and full chunks
LENGTH = max(PROMPTS) + STEPS["C++"]
TOLERANCE = 1e-5  # relative in norm, of the logits of one token; measured 6e-7


def network(rng, **sizes):
    palm = PaLM(PaLMConfig(**sizes), seed=4)
    randomise_scales(palm, rng)
    return palm


@pytest.fixture(params=["C++", "MindSpore"])
def steps(request, monkeypatch):
    """Both ways to compute a token: the C++ step, and MindSpore's ops where it cannot be built."""
    assert cpu_step.library() is not None, "the tests want g++"
    if request.param == "MindSpore":
        monkeypatch.setattr(cpu_step, "library", lambda: None)
    return request.param


def caches_of(decoder):
    """Keys and values of every block."""
    parameters = sorted(decoder._step.parameters_and_names(), key=lambda named: named[1].name)
    caches = [parameter.asnumpy() for _, parameter in parameters if parameter.name.startswith("cache.")]
    assert len(caches) >= 2
    return caches


def count_compilations(monkeypatch):
    """A list to which each compilation adds the name of its Cell."""
    from mindspore._c_expression import GraphExecutor_

    compilations, original = [], GraphExecutor_.compile

    def compile_and_count(*args):
        compilations.append(type(args[1]).__name__)
        return original(*args)

    monkeypatch.setattr(GraphExecutor_, "compile", compile_and_count)
    return compilations


def test_200_greedy_steps_are_those_of_full_forward_passes(device, rng, steps, monkeypatch):
    """Prompts of different lengths in one batch, in two compilations: logits, log(Z) and choice of every step."""
    palm = network(rng, **ODD)
    config = palm.config
    weights = weights_of(palm)
    in_jax = compiled(lambda ids: reference.logits(weights, ids, shape_of(config))[..., : config.vocab_size])
    ids = np.zeros((3, LENGTH), np.int32)
    for row, length in zip(ids, PROMPTS, strict=True):
        row[:length] = rng.integers(0, config.vocab_size, length)
    lengths, rows = np.array(PROMPTS), np.arange(3)
    palm(Tensor(ids)).asnumpy()
    compilations = count_compilations(monkeypatch)
    decoder = Decoder(palm, 3, LENGTH)
    logits, log_z = decoder.read([list(row[:n]) for row, n in zip(ids, lengths, strict=True)])
    for _ in range(STEPS[steps]):
        for whole in (np.asarray(in_jax(ids)), palm(Tensor(ids)).asnumpy()):
            expected = whole[rows, lengths - 1]
            for ours, theirs in zip(logits, expected, strict=True):
                assert relative(ours, theirs) < TOLERANCE
            np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))
            np.testing.assert_allclose(log_z, jax.nn.logsumexp(expected, axis=-1), rtol=TOLERANCE)
        ids[rows, lengths] = logits.argmax(-1)
        logits, log_z = decoder.write(ids[rows, lengths], lengths)
        lengths = lengths + 1
    expected = ["CpuPrompts", "CpuStep"] if steps == "C++" else ["DecodeStep", "DecodeStep"]
    assert sorted(name for name in compilations if name in {*expected, "CpuStep", "DecodeStep"}) == expected
    assert len({tuple(row[n - 20 : n]) for row, n in zip(ids, lengths, strict=True)}) == 3  # not all in one loop


SWITCHES = [
    {"attention": "multi_head"},
    {"block": "serial", "attention": "multi_head", "mlp": "gelu"},
    {"block": "serial"},
    {"mlp": "geglu"},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_ablations_decode_as_well(device, rng, switches):
    palm = network(rng, **{**EVEN, "layers": 1}, **switches)
    full = {"block": "parallel", "attention": "multi_query", "mlp": "swiglu", **switches}
    ids = rng.integers(0, palm.config.vocab_size, (2, 90)).astype(np.int32)
    expected = logits_of(weights_of(palm), ids, palm.config, **full)
    decoder, lengths = Decoder(palm, 2, 90), np.array([80, 3])
    logits, _ = decoder.read([list(row[:n]) for row, n in zip(ids, lengths, strict=True)])
    for _ in range(10):
        for row in range(2):
            assert relative(logits[row], expected[row, lengths[row] - 1]) < TOLERANCE
        logits, _ = decoder.write(ids[[0, 1], lengths], lengths)
        lengths = lengths + 1


def test_switches_of_pytorchs_palms_decode_as_well(device, rng, steps):
    """Against the network's own full forward pass, which other tests compare with those packages."""
    switches = {"norm": "layer_norm", "norm_epsilon": 1e-5, "norm_scale": "around_one", "final_norm_scale": True}
    palm = network(rng, **{**EVEN, "layers": 1}, **switches, scaled_logits=False, xpos_base=512.0)
    ids = rng.integers(0, palm.config.vocab_size, (1, 90)).astype(np.int32)
    whole, decoder = palm(Tensor(ids)).asnumpy()[0], Decoder(palm, 1, 90)
    logits, _ = decoder.read([list(ids[0, :80])])
    for position in range(80, 90):
        assert relative(logits[0], whole[position - 1]) < TOLERANCE
        logits, _ = decoder.write(ids[0, position : position + 1], np.array([position]))


def test_in_another_dtype_mindspores_own_ops_decode(device, rng):
    """In float16, against a full forward pass in float16: 2^-11 per rounding, in another order of sums."""
    with layout(Layout(compute_dtype="float16")):
        palm = network(rng, **{**EVEN, "layers": 1})
        ids = rng.integers(0, palm.config.vocab_size, (1, 70)).astype(np.int32)
        whole, decoder = palm(Tensor(ids)).asnumpy()[0], Decoder(palm, 1, 70)
        assert decoder._cpu_step is None
        logits, _ = decoder.read([list(ids[0, :66])])
        for position in range(66, 70):
            assert relative(logits[0], whole[position - 1]) < 2e-3
            logits, _ = decoder.write(ids[0, position : position + 1], np.array([position]))


def test_a_sequence_is_started_over(device, rng):
    """The rest of an earlier, longer sequence in the cache is not seen."""
    palm = network(rng, **{**EVEN, "layers": 1})
    decoder = Decoder(palm, 1, 64)
    first, second = (list(rng.integers(0, palm.config.vocab_size, n)) for n in (60, 7))
    fresh = decoder.read([second])[0].copy()
    decoder.read([first])
    decoder.write(np.array([first[0]]), np.array([60]))
    np.testing.assert_array_equal(decoder.read([second])[0], fresh)


@pytest.mark.parametrize(
    "sizes",
    [
        {"d_model": 13, "heads": 3, "head_dim": 6, "d_ff": 15, "vocab_size": 77},
        {"d_model": 40, "heads": 5, "head_dim": 34, "d_ff": 165, "vocab_size": 131},
        {"d_model": 24, "heads": 4, "head_dim": 8, "d_ff": 600, "vocab_size": 40},  # more elements than caches hold
        {"d_model": 21, "heads": 6, "head_dim": 18, "d_ff": 42, "vocab_size": 66, "attention": "multi_head"},
    ],
    ids=lambda sizes: str(sizes["d_model"]),
)
@pytest.mark.parametrize("sequences", [1, 5, 13, 27])
def test_any_sizes_in_cpp(device, rng, sizes, sequences):
    """Around the widths of vectors, tiles and groups of heads."""
    palm = network(rng, **sizes, layers=2)
    vocabulary = palm.config.vocab_size
    ids = rng.integers(0, vocabulary, (sequences, 80)).astype(np.int32)
    expected = logits_of(weights_of(palm), ids, palm.config, attention=sizes.get("attention", "multi_query"))
    decoder, rows, lengths = Decoder(palm, sequences, 80), np.arange(sequences), rng.integers(1, 70, sequences)
    assert decoder._cpu_step is not None
    logits, log_z = decoder.read([list(row[:n]) for row, n in zip(ids, lengths, strict=True)])
    for _ in range(6):
        wanted = expected[rows, lengths - 1, :vocabulary]
        assert max(map(relative, logits, wanted)) < TOLERANCE
        np.testing.assert_allclose(log_z, jax.nn.logsumexp(wanted, axis=-1), rtol=TOLERANCE)
        logits, log_z = decoder.write(ids[rows, lengths], lengths)
        lengths += 1


def test_gates_of_any_size_in_cpp(device, rng):
    """Their exponentials exceed float32 on both sides."""
    palm = network(rng, **{**EVEN, "layers": 1})
    config, q_wi = palm.config, palm.block_weights(0)["q_wi"]
    kernels = q_wi.asnumpy().reshape(config.d_model, config.heads, -1).copy()
    gate = slice(config.head_dim, config.head_dim + config.d_ff // config.heads)
    kernels[..., gate] *= 200
    q_wi.set_data(Tensor(kernels.reshape(q_wi.shape)))
    ids = rng.integers(0, config.vocab_size, (1, 30)).astype(np.int32)
    expected = logits_of(weights_of(palm), ids, config)[0]
    decoder = Decoder(palm, 1, 64)
    assert decoder._cpu_step is not None
    decoder.read([[int(ids[0, 0])]])
    for position in range(1, 30):
        logits, _ = decoder.write(ids[0, position : position + 1], np.array([position]))
        assert relative(logits[0], expected[position, : config.vocab_size]) < TOLERANCE


def test_logits_that_are_not_finite_are_seen_in_cpp(device, rng):
    palm = network(rng, **{**EVEN, "layers": 1})
    decoder = Decoder(palm, 2, 64)
    decoder.read([[1], [1]])
    assert np.isfinite(decoder.write(np.array([1, 7]), np.array([1, 1]))[1]).all()
    embedding = palm.embedding.asnumpy().copy()
    embedding[7] = np.nan
    palm.embedding.set_data(Tensor(embedding))
    _, log_z = decoder.write(np.array([1, 7]), np.array([1, 1]))  # with the current weights
    assert not np.isfinite(log_z).any()  # every position has a logit for token 7


@pytest.mark.parametrize("attention", ["multi_query", "multi_head"])
def test_prompts_in_cpp_are_those_of_mindspores_ops(device, rng, attention, monkeypatch):
    """Of 300 tokens, over a call's 256, and shorter ones in the same call: logits, log(Z), keys and values."""
    palm = network(rng, **EVEN, attention=attention)
    prompts = [list(map(int, rng.integers(0, palm.config.vocab_size, n))) for n in (300, 1, 64, 25)]
    ours = Decoder(palm, 5, 320)
    monkeypatch.setattr(cpu_step, "library", lambda: None)
    theirs = Decoder(palm, 5, 320)
    assert ours._cpu_prompts is not None and theirs._cpu_prompts is None
    results = ours.read([*prompts, None]), theirs.read([*prompts, None])
    for (logits, log_z), (expected, expected_log_z) in [results]:
        assert max(map(relative, logits[:4], expected[:4])) < TOLERANCE
        np.testing.assert_allclose(log_z, expected_log_z, rtol=TOLERANCE)
        assert not logits[4].any() and log_z[4] == 0
    for cached, expected in zip(caches_of(ours), caches_of(theirs), strict=True):
        for sequence, prompt in enumerate(prompts):
            assert relative(cached[sequence][..., : len(prompt), :], expected[sequence][..., : len(prompt), :]) < 1e-5
        assert not cached[4].any()


@pytest.mark.parametrize("attention", ["multi_query", "multi_head"])
def test_a_prompt_leaves_the_same_bits_in_any_calls_in_cpp(device, rng, attention):
    """In one call beside others, and in chunks of its own: logits, log(Z), keys and values."""
    palm = network(rng, **ODD, attention=attention)
    prompts = [list(map(int, rng.integers(0, palm.config.vocab_size, n))) for n in (70, 290, 1, 129)]
    together, alone = Decoder(palm, 4, 320), Decoder(palm, 4, 320)
    logits, log_z = together.read(prompts)
    for sequence, prompt in enumerate(prompts):
        for start in range(0, len(prompt), CHUNK):
            found = alone.read_chunk(sequence, prompt, start)
        np.testing.assert_array_equal(found[0], logits[sequence])
        assert found[1] == log_z[sequence]
    for ours, theirs in zip(caches_of(together), caches_of(alone), strict=True):
        np.testing.assert_array_equal(ours, theirs)


BAD_ROWS = {  # tokens, sequences, positions
    "token": ([7, 100], [0, 0], [0, 1]),
    "sequence": ([7, 7], [0, 2], [0, 1]),
    "position": ([7, 7], [0, 0], [63, 64]),
    "a sequence twice": ([7, 7, 7], [0, 1, 0], [0, 0, 1]),
    "nothing": ([7], [0], [cpu_step.IDLE]),
}


@pytest.mark.parametrize("rows", BAD_ROWS.values(), ids=list(BAD_ROWS))
def test_rows_out_of_range_are_not_read_in_cpp(device, rng, rows):
    palm = network(rng, d_model=16, heads=2, head_dim=8, d_ff=32, vocab_size=100, layers=1)
    decoder, padded = Decoder(palm, 2, 64), np.zeros((4, cpu_step.CpuPrompts.ROWS), np.int32)
    padded[2] = cpu_step.IDLE
    padded[:3, : len(rows[0])] = rows
    with pytest.raises(RuntimeError, match="ReadPrompts"):
        decoder._cpu_prompts(Tensor(padded))


@pytest.mark.parametrize(("token", "position"), [(0, 64), (0, -1), (100, 0), (-1, 0)])
def test_tokens_and_positions_out_of_range_are_not_read_in_cpp(device, rng, token, position):
    decoder = Decoder(network(rng, d_model=16, heads=2, head_dim=8, d_ff=32, vocab_size=100, layers=1), 1, 64)
    with pytest.raises(RuntimeError, match="DecodeStep"):
        decoder.write(np.array([token]), np.array([position]))


@pytest.mark.parametrize("wanted", [[0], [4], [1, 3], [0, 2, 3, 4]], ids=str)
def test_sequences_without_a_token_change_nothing(device, rng, wanted):
    """The others get the bits of a step of all five, theirs are zeros, and their caches stay as they are."""
    palm, mask = network(rng, **ODD), np.isin(np.arange(5), wanted)
    prompts = [list(rng.integers(0, palm.config.vocab_size, n)) for n in (3, 66, 1, 20, 9)]
    lengths, tokens = np.array([len(prompt) for prompt in prompts]), rng.integers(0, palm.config.vocab_size, 5)
    full, some = Decoder(palm, 5, 128), Decoder(palm, 5, 128)
    assert full._cpu_step is not None
    for decoder in (full, some):
        decoder.read(prompts)
    expected = full.write(tokens, lengths)
    actual = some.write(tokens, np.where(mask, lengths, 0), mask)  # a position of 0 would overwrite the first token
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(ours[mask], theirs[mask])
        assert not ours[~mask].any()
    later = [decoder.write(tokens, lengths)[0] for decoder in (full, some)]
    np.testing.assert_array_equal(*later)


COMING_AND_GOING = """
import numpy as np
from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.generate.cpu import step as cpu_step
from mindspore_palm.generate.decoder import Decoder
from mindspore_palm.parallel.context import open_device
open_device("CPU")
palm = PaLM(PaLMConfig(layers=1, d_model=64, heads=4, head_dim=16, d_ff=256, vocab_size=512))
assert cpu_step.usable(palm.config)
for _ in range(24):
    Decoder(palm, 1, 64).write(np.zeros(1, np.int32), np.zeros(1, np.int32))
print("done")
"""


def test_networks_come_and_go():
    """MindSpore unloads the library with the last network that calls it, but its threads still need it."""
    run = subprocess.run(
        [sys.executable, "-c", COMING_AND_GOING], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr[-500:]


def test_the_network_stays_as_it_is(device, rng):
    """It shares its weights with the decoder, and their names stay."""
    palm = network(rng, **{**EVEN, "layers": 1})
    names = [p.name for p in palm.trainable_params()]
    Decoder(palm, 1, 64)
    assert [p.name for p in palm.trainable_params()] == names == list(weights_of(palm))


@pytest.mark.parametrize(("attention", "heads"), [("multi_query", 1), ("multi_head", 3)])
def test_a_token_leaves_one_key_and_one_value_per_layer(device, rng, attention, heads):
    """Of head_dim elements each; with multi-head attention, one of each per head."""
    sizes = {"d_model": 24, "heads": 3, "head_dim": 8, "d_ff": 48, "vocab_size": 40, "layers": 2}
    step = DecodeStep(network(rng, **sizes, attention=attention), sequences=5, context=64)
    cached = [p for p in step.get_parameters() if p.name.startswith("cache.")]
    assert len(cached) == 2 * 2
    assert sum(p.size for p in cached) == 5 * 64 * 2 * (1 + 1) * 8 * heads

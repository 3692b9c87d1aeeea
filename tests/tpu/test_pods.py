"""PaLM compiled for the machine that trained it: TPU v4 chips, 3,072 a pod, by XLA, ahead of time, with no TPU.

``pip install -r tests/requirements-tpu.txt && python -m pytest -m tpu``: some minutes.
"""

from __future__ import annotations

import pytest
from tpu.cases import case_of, settings_of
from tpu.collectives import per_layer
from tpu.runs import compiled
from tpu.table import CASES

pytest.importorskip("libtpu", reason="libtpu compiles for TPU and is not installed; tests/requirements-tpu.txt has it")
pytestmark = pytest.mark.tpu

HBM = 32 * 2**30  # of a chip
USABLE = 30.75 * 2**30  # of which XLA leaves so much to a program
CHIPS_A_HOST = 4


def case_named(name: str):
    config, overrides, recompute = CASES[name]
    settings = settings_of(config, *overrides)
    return settings, case_of(settings, recompute)


@pytest.mark.parametrize("name", CASES)
def test_compiles_and_fits(name):
    found = compiled(case_named(name)[1])
    assert found.bytes < USABLE < HBM
    assert found.alias_bytes == pytest.approx(found.output_bytes, abs=4096)  # the state is updated in place


@pytest.mark.parametrize("name", CASES)
def test_state_is_what_the_layout_says(name):
    """Weights and two moments, in slices: the arguments of XLA's program, but the tokens."""
    from mindspore_palm.model.weights import placements
    from mindspore_palm.parallel.check import layout_of

    settings, case = case_named(name)
    weights = sum(place.shard_bytes for place in placements(settings.model, layout_of(settings, "GPU", planned=True)))
    assert compiled(case).argument_bytes == pytest.approx(3 * weights, rel=5e-3)


def test_it_does_not_fit_where_activations_are_kept():
    """That recomputation is what makes it fit: 540B's activations alone are more than a chip."""
    with pytest.raises(RuntimeError, match="Ran out of memory on HBM"):
        compiled(
            case_of(settings_of("palm_540b", "parallel.pods=1", "train.batch_size=1024", "parallel.recompute=none"))
        )


@pytest.fixture(scope="module")
def layer():
    """One layer of 540B on two pods: (part, collective, axes, what) to (count, type, bytes)."""
    _, case = case_named("540B, two pods")
    found = {}
    for kind, count in per_layer(compiled(case).program, case).items():
        found.setdefault((kind.part, kind.op, kind.axes, kind.what), []).append((count, kind.dtype, kind.bytes))
    return found


D, TOKENS, MODEL, DATA = 18432, 4 * 2048, 12, 256
COLUMNS = {"q_wi": 13312 * D, "kv": 512 * D, "o_wo": 7168 * D}  # of a model rank
RESIDUAL = [(1, "bf16", 2 * TOKENS * D)]


def test_weights_are_gathered_over_data_for_each_pass(layer):
    for part in ("forward", "backward"):
        for name, size in COLUMNS.items():
            assert layer[part, "all-gather", "data", name] == [(1, "bf16", 2 * size)]


def test_gradients_are_summed_into_slices(layer):
    """In bfloat16; 72 rows of D a data rank are padded to 80, the next multiple of 16."""
    for name, size in COLUMNS.items():
        padded = size if name == "kv" else size // D * 80 * DATA
        assert layer["backward", "reduce-scatter", "data", name] == [(1, "bf16", 2 * padded)]


def test_only_slices_of_gradients_cross_pods(layer):
    crossing = {key: value for key, value in layer.items() if "pod" in key[2]}
    expected = {
        ("backward", "all-reduce by hosts", "pod", name): [(1, "bf16", 2 * size // DATA)]
        for name, size in COLUMNS.items()
    }
    scale = {("backward", "all-reduce by hosts", "pod", "norm.scale"): [(1, "f32", 4 * D // MODEL)]}
    assert crossing == {**expected, **scale}
    # the paper: about 1.3 GB from each host each way. All gradients in bfloat16 are 1.407e9 B a host, 1.31 GiB
    a_host = CHIPS_A_HOST * 118 * sum(size for [(_, _, size)] in crossing.values())
    assert a_host == pytest.approx(2 * 540.354e9 / 768, rel=0.02)


def test_the_residual_stays_in_slices_over_model(layer):
    """An all-reduce in its two halves: nothing as large as the residual is summed whole."""
    for part, gathers in (("forward", 1), ("backward", 3)):  # of normed activations; its second, and the gradient's
        assert layer[part, "reduce-scatter in a product", "model", "activations"] == RESIDUAL
        assert layer[part, "all-gather", "model", "activations"] == [(gathers, *RESIDUAL[0][1:])]
        whole = layer[part, "all-reduce", "model", "activations"]
        assert sum(count * size for count, _, size in whole) <= 2 * RESIDUAL[0][2] * 512 / D


def test_mindspore_gathers_the_same(layer, device):
    """The ledger of MindSpore's partitioner for the same configuration: gatherings agree in count, type and bytes."""
    from mindspore_palm.dry_run.compile import layer_ledger

    ours = {
        (kind.part, kind.weight): (count, kind.dtype, kind.bytes)
        for kind, count in layer_ledger(settings_of("palm_540b")).counts.items()
        if kind.op == "all-gather" and kind.weight
    }
    theirs = {
        (part, what): (count, {"bf16": "BFloat16"}[dtype], size)
        for (part, op, axes, what), [(count, dtype, size), *_] in layer.items()
        if op == "all-gather" and axes == "data"
    }
    assert len(ours) == 6 and ours == theirs

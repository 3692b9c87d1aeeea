"""The bits of initial weights: a run that is started again with the same seed must start from the same numbers.

``tests/data/initial_weights.npz`` holds the weights of one small network of each kind, and windows of PaLM 540B.
The random integers are the same on every machine; NumPy's logarithm and cosine may differ in the last bit of float64,
which changes the last bit of a float32 at most, and hardly ever. Written by ``python tests/unit/test_initial_bits.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.model.initial import initial_weight
from mindspore_palm.model.lora import adapt

FILE = Path(__file__).resolve().parents[1] / "data" / "initial_weights.npz"
SIZES = {"layers": 2, "d_model": 8, "heads": 2, "head_dim": 4, "d_ff": 12, "vocab_size": 11}
KINDS = {
    "palm": {},
    "multi_head": {"attention": "multi_head"},
    "gelu": {"mlp": "gelu"},
    "serial": {"block": "serial"},
    "layer_norm": {"norm": "layer_norm", "norm_scale": "around_one", "final_norm_scale": True},
    "padded": {"vocab_multiple": 8},
}
WINDOWS = {
    "embedding": (slice(255_990, 256_000), slice(18_400, 18_404)),
    "blocks.0.q_wi": (slice(7, 12), slice(3_320, 3_332)),
    "blocks.117.kv": (slice(18_430, 18_432), slice(250, 262)),
    "blocks.60.o_wo": (slice(1_790, 1_794), slice(0, 6)),  # a head's mlp, then the next one's attention
}


def network_of(kind: str) -> PaLM:
    if kind != "lora":
        return PaLM(PaLMConfig(**SIZES, **KINDS[kind]), seed=5)
    palm = PaLM(PaLMConfig(**SIZES), seed=5)
    adapt(palm, rank=3, seed=6)
    return palm


def drawn(kind: str) -> dict[str, np.ndarray]:
    """The weights of a network, in its order, or the windows of 540B."""
    if kind == "windows":
        config = PaLMConfig.from_preset("palm_540b")
        return {name: initial_weight(config, 5, name, window) for name, window in WINDOWS.items()}
    return {p.name: p.asnumpy() for p in network_of(kind).get_parameters()}


@pytest.fixture(scope="module")
def stored():
    with np.load(FILE) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("kind", [*KINDS, "lora", "windows"])
def test_initial_weights_keep_their_bits(device, stored, kind):
    expected = {name.split("/")[1]: values for name, values in stored.items() if name.startswith(f"{kind}/")}
    ours = drawn(kind)
    assert ours.keys() == expected.keys()
    steps = {name: np.abs(ordered(ours[name]) - ordered(values)) for name, values in expected.items()}
    assert max(step.max() for step in steps.values()) <= 1
    assert sum((step > 0).sum() for step in steps.values()) <= 1e-3 * sum(step.size for step in steps.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_weights_stays(device, stored, kind):
    """The global norm and the optimizer's vectors add up in this order: another one would change bits of every step."""
    names = [name.split("/")[1] for name in stored if name.startswith(f"{kind}/")]
    assert [p.name for p in network_of(kind).trainable_params()] == names


def ordered(x: np.ndarray) -> np.ndarray:
    """float32 as integers in which neighbours differ by one."""
    bits = x.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(2**31) - bits, bits)


if __name__ == "__main__":
    from mindspore_palm.parallel.context import open_device

    open_device("CPU")
    np.savez(
        sys.argv[1] if len(sys.argv) > 1 else FILE,
        **{f"{kind}/{name}": x for kind in (*KINDS, "lora", "windows") for name, x in drawn(kind).items()},
    )

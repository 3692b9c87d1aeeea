"""Errors that are planted in the C++ functions of a training step: the comparisons of test_fused.py see each."""

from __future__ import annotations

import shutil

import jax
import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, mutable
from parity.test_fused import OPTIMIZERS, SHAPES, TOLERANCE, updater
from parity.twins import ODD, randomise_scales, reference_loss, relative, tokens, weights_of
from reference import compiled

from mindspore_palm import PaLM, PaLMConfig, native
from mindspore_palm.cpu import library as cpu
from mindspore_palm.model.loss import Loss
from mindspore_palm.optim.fused import FusedUpdate
from mindspore_palm.parallel import fused
from mindspore_palm.train.step import Update

LIMIT = 5e-6  # of test_fused.py, for gradients
SEEN = 1e-4  # relative difference; a planted error is far beyond rounding
IN_THE_NETWORK = {
    "a token sees the next one": (
        "attention.h",
        "s.context(), first + r + 1, written)",
        "s.context(), std::min(first + r + 2, s.length), written)",
    ),
    "a token sees the next one, backward": ("attention.h", "seen = row + 1;", "seen = std::min(row + 2, s.length);"),
    "keys keep the gradient of one head": ("block.h", "h = 1; h < s_.heads", "h = s_.heads; h < s_.heads"),
    "keys are not turned back": ("block.h", "RotateGradient(dk, w_.cos_k + table, w_.sin_k + table, K);", ""),
    "the residual has no gradient": ("rows.h", "dx[d] = residual[d] +", "dx[d] = 0.9f * residual[d] +"),
    "the norm's factor is a constant": ("rows.h", "- x[d] * factor", ""),
    "the gate is linear, backward": ("rows.h", "d * above * (1.0f + g * (1.0f - sigmoid))", "d * above"),
    "the target has no gradient": ("loss.h", "d_logits[target - first] -= d_cross_entropy;", ";"),
    "padding is in Z": ("loss.h", "ShiftedExp(logits, largest, vocabulary)", "ShiftedExp(logits, largest, padded)"),
    "log(Z) has no gradient": ("loss.h", "(d_cross_entropy + d_log_z) * inverse", "d_cross_entropy * inverse"),
    "a range of rows is not in the scale's gradient": (
        "tasks.h",
        "for (int64_t i = 1; i < ranges_",
        "for (int64_t i = 2; i < ranges_",
    ),
}
IN_THE_UPDATE = {
    "no clip of the gradients": (
        "adamw",
        "update.h",
        "const float gradient = g[i] * factor;",
        "const float gradient = g[i];",
    ),
    "no decay": ("adamw", "update.h", "p[i] = p[i] * keep - m[i] * step", "p[i] = p[i] - m[i] * step"),
    "the size of the next weight": (
        "adafactor",
        "update.h",
        "std::max(rms_p[index]",
        "std::max(rms_p[(index + 1) % rms_p.size()]",
    ),
}


def build(folder, file, text, replacement):
    """The library with a text of one of its headers replaced."""
    shutil.copytree(cpu.SHARED / "training", folder / "training")
    path = folder / "training" / file
    source = path.read_text(encoding="utf-8")
    assert source.count(text) == 1
    path.write_text(source.replace(text, replacement), encoding="utf-8")
    return cpu._compile("training", folder / "training" / fused.SOURCE.name, native.compiler(), folder)


@pytest.fixture
def use(monkeypatch, tmp_path):
    """Builds the library with an error, and has networks call it from then on."""
    monkeypatch.delenv(fused.SWITCH, raising=False)
    monkeypatch.setenv("MINDSPORE_PALM_GRAPHS", "off")  # the key of a graph does not have the sources of this library
    monkeypatch.setattr(
        cpu, "FLAGS", ["-O1" if flag == "-O3" else flag for flag in cpu.FLAGS]
    )  # compiled in half the time

    def use_library(*error):
        built = build(tmp_path, *error)
        monkeypatch.setattr(fused, "library", lambda: built)

    return use_library


def far_from_jax():
    """Largest relative difference of the loss and of any gradient."""
    rng = np.random.default_rng(4)
    palm = PaLM(PaLMConfig(**{**ODD, "vocab_multiple": 16}), seed=3)
    randomise_scales(palm, rng)
    inputs, targets = tokens(rng, palm.config, 3, 19)
    count = Tensor(np.float32((targets >= 0).sum()))
    (ours, _), gradients = ms.value_and_grad(Loss(palm), None, palm.trainable_params(), has_aux=True)(
        Tensor(inputs), Tensor(targets), count
    )
    in_jax = jax.value_and_grad(lambda w: reference_loss(w, inputs, targets, palm.config), has_aux=True)
    (theirs, _), expected = compiled(in_jax)(weights_of(palm))
    far = [
        relative(gradient.asnumpy(), expected[p.name])
        for p, gradient in zip(palm.trainable_params(), gradients, strict=True)
    ]
    return max(abs(float(ours) / float(theirs) - 1), *far)


def test_nothing_is_far_without_an_error(device, monkeypatch):
    monkeypatch.delenv(fused.SWITCH, raising=False)
    assert far_from_jax() < LIMIT


@pytest.mark.parametrize("error", IN_THE_NETWORK.values(), ids=IN_THE_NETWORK)
def test_an_error_in_the_network_is_seen(device, use, error):
    use(*error)
    assert far_from_jax() > SEEN


@pytest.mark.parametrize("error", IN_THE_UPDATE.values(), ids=IN_THE_UPDATE)
def test_an_error_in_the_update_is_seen(device, use, error):
    name, *error = error
    use(*error)
    rng = np.random.default_rng(4)
    start = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    sides = [updater(start, OPTIMIZERS[name], kind, 1.0) for kind in (FusedUpdate, Update)]
    for _ in range(3):
        grads = mutable(tuple(Tensor(rng.standard_normal(s).astype(np.float32)) for s in SHAPES.values()))
        for _, _, update in sides:
            update(Tensor(np.float32(1.0)), grads)
    ours, expected = ([p.asnumpy() for p in (*parameters, *optimizer.m)] for parameters, optimizer, _ in sides)
    assert max(map(relative, ours, expected)) > SEEN > TOLERANCE

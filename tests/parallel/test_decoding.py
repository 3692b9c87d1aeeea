"""Decoding on the meshes of the parity table: the results of one process, and the same bits on all workers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from parallel.compare import relative
from parallel.decoding_worker import VOCABULARIES, decode
from parallel.msrun import run_workers
from parallel.suite import MESHES

TOLERANCE = 1e-5  # relative in norm, of the logits of one token; measured 5e-7
ALWAYS = ((1, 1, 2),)
CASES = [
    pytest.param(mesh, marks=[] if mesh in ALWAYS else pytest.mark.slow, id="x".join(map(str, mesh)))
    for mesh in MESHES
    if mesh != (1, 1, 1)
]


@pytest.fixture(scope="module")
def one_process(device):
    results = {}
    for vocabulary in VOCABULARIES:
        results |= decode(vocabulary)
    return results


@pytest.mark.parametrize("mesh", CASES)
def test_decoding_on_a_mesh(one_process, mesh, tmp_path):
    (tmp_path / "mesh.json").write_text(json.dumps(mesh))
    devices = int(np.prod(mesh))
    run_workers("decoding_worker.py", devices, tmp_path, jobs=2)
    first, *others = [dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(devices)]
    for other in others:
        for name, values in first.items():
            np.testing.assert_array_equal(other[name], values, name)
    assert first.keys() == one_process.keys()
    for vocabulary in VOCABULARIES:
        np.testing.assert_array_equal(first[f"{vocabulary}/tokens"], one_process[f"{vocabulary}/tokens"])
        for name in ("logits", "log_z"):
            for step, expected in zip(first[f"{vocabulary}/{name}"], one_process[f"{vocabulary}/{name}"], strict=True):
                assert step.shape == expected.shape and relative(step, expected) < TOLERANCE, name
